"""Trials and successes per draft position, with exponential forgetting."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_POSITIONS = 8
MEMORY_STEPS = 4000.0  # effective steps that are remembered: some hundred requests


def _zeros() -> list[float]:
    return [0.0] * MAX_POSITIONS


@dataclass(slots=True)
class Counts:
    """Effective trials and successes of each draft position, given that it was reached."""

    trials: list[float] = field(default_factory=_zeros)
    successes: list[float] = field(default_factory=_zeros)

    def add(self, num_steps: float, accepted: Sequence[float], weight: float) -> None:
        """Add one answer's steps; `accepted[j]` had their first j + 1 drafts accepted."""
        reached = float(num_steps)
        for j, successes in enumerate(accepted[:MAX_POSITIONS]):
            keep = max(0.0, 1 - weight * reached / MEMORY_STEPS)
            self.trials[j] = keep * self.trials[j] + weight * reached
            self.successes[j] = keep * self.successes[j] + weight * successes
            reached = successes

    def add_expected(
        self, num_steps: float, accepted: Sequence[float], expected: Sequence[float], weight: float
    ) -> None:
        """As `add`, with `expected` successes in place of those seen among the same trials."""
        reached = float(num_steps)
        pairs = zip(accepted[:MAX_POSITIONS], expected, strict=False)
        for j, (seen, successes) in enumerate(pairs):
            keep = max(0.0, 1 - weight * reached / MEMORY_STEPS)
            self.trials[j] = keep * self.trials[j] + weight * reached
            self.successes[j] = keep * self.successes[j] + weight * successes
            reached = seen

    def scale(self, factor: float) -> None:
        """Forget all but `factor` of what was seen."""
        self.trials = [factor * value for value in self.trials]
        self.successes = [factor * value for value in self.successes]

    @classmethod
    def total(cls, counts: Iterable["Counts"]) -> "Counts":
        """The sum of several gateways' counts, exact in any order."""
        rows = list(counts)
        return cls(
            [math.fsum(column) for column in zip(*(c.trials for c in rows), strict=True)],
            [math.fsum(column) for column in zip(*(c.successes for c in rows), strict=True)],
        )

    def to_json(self) -> dict[str, list[float]]:
        """The positions that were tried."""
        used = sum(value > 0 for value in self.trials)
        return {"trials": self.trials[:used], "successes": self.successes[:used]}

    @classmethod
    def from_json(cls, value: Any) -> "Counts":
        """What `to_json` wrote; raises ValueError for numbers that can't be counts."""
        trials, successes = value["trials"], value["successes"]
        padding = [0.0] * (MAX_POSITIONS - len(trials))
        if len(trials) != len(successes) or len(trials) > MAX_POSITIONS:
            raise ValueError("trials and successes differ in length")
        for tried, succeeded in zip(trials, successes, strict=True):
            if not 0 <= succeeded <= tried * (1 + 1e-9) or not math.isfinite(tried):
                raise ValueError(f"{succeeded} successes of {tried} trials")
        return cls([float(t) for t in trials] + padding, [float(s) for s in successes] + padding)
