"""Trials and successes of each draft position, with exponential forgetting."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_POSITIONS = 8
MEMORY_STEPS = 4000.0  # effective steps until older ones fade: some hundred requests
KEPT_AFTER_ALARM = 0.1  # of what was counted before
MAX_EPOCH = 1_000_000_000
MAX_TRIALS = 1e12  # that are believed: sums of them are numbers still


def _zeros() -> list[float]:
    return [0.0] * MAX_POSITIONS


def trials(num_steps: float, accepted: Sequence[float], cut_after: int = -1) -> list[float]:
    """How many steps showed the outcome of each draft: those that reached it and were not cut.

    >>> trials(5, (3, 1), cut_after=1)
    [5.0, 2.0]
    """
    reached = [float(num_steps), *map(float, accepted[:-1])] if accepted else []
    if 0 <= cut_after < len(reached):
        reached[cut_after] -= 1
    return reached


@dataclass(slots=True)
class PositionCounts:
    """Effective trials and successes of each draft position, among the steps that reached it.

    `epoch` is the number of drift alarms before them: beside counts of a later epoch they count
    a tenth per alarm. Whoever counts on after an alarm elsewhere first goes to its epoch. `counted`
    is how many trials of the first position there ever were, the forgotten ones with them.
    """

    trials: list[float] = field(default_factory=_zeros)
    successes: list[float] = field(default_factory=_zeros)
    epoch: int = 0
    counted: float = 0.0

    def add(
        self, num_steps: float, accepted: Sequence[float], weight: float, cut_after: int = -1
    ) -> None:
        """Add one answer's steps; `accepted[j]` had their first j + 1 drafts accepted.

        A last step that the answer's end cut after `cut_after` accepted drafts tried no further one
        that anybody saw.
        """
        self.add_expected(num_steps, accepted, accepted, weight, cut_after)

    def add_expected(
        self,
        num_steps: float,
        accepted: Sequence[float],
        expected: Sequence[float],
        weight: float,
        cut_after: int = -1,
    ) -> None:
        """As `add`, with `expected` successes in place of those seen among the same trials."""
        self.count(trials(num_steps, accepted[:MAX_POSITIONS], cut_after), expected, weight)

    def count(self, tried: Sequence[float], held: Sequence[float], weight: float) -> None:
        """Add `tried` trials of each position, `held` of which succeeded, at this weight."""
        if tried:
            self.counted += weight * tried[0]
        for j, (count, successes) in enumerate(zip(tried, held, strict=False)):
            trials = weight * count
            keep = 1 - trials / MEMORY_STEPS if trials < MEMORY_STEPS else 0.0
            self.trials[j] = keep * self.trials[j] + trials
            self.successes[j] = keep * self.successes[j] + weight * successes

    def scale(self, factor: float) -> None:
        """Forget all but `factor` of what was seen."""
        self.trials = [factor * value for value in self.trials]
        self.successes = [factor * value for value in self.successes]

    def advance(self, epoch: int) -> None:
        """Go to a later `epoch`, forgetting what its alarms say."""
        self.scale(KEPT_AFTER_ALARM ** (epoch - self.epoch))
        self.epoch = epoch

    def include(self, other: "PositionCounts") -> None:
        """Add another gateway's counts, at the later of both epochs."""
        if other.epoch > self.epoch:
            self.advance(other.epoch)
        share = KEPT_AFTER_ALARM ** (self.epoch - other.epoch)
        self.counted += other.counted
        self.trials = [a + share * b for a, b in zip(self.trials, other.trials, strict=True)]
        self.successes = [
            a + share * b for a, b in zip(self.successes, other.successes, strict=True)
        ]

    def fade(self, num_newer: float, others: "PositionCounts") -> None:
        """Forget as if `others` had added `num_newer` of their trials of the first position."""
        for j, (tried, accepted) in enumerate(zip(others.trials, others.successes, strict=True)):
            keep = math.exp(-num_newer / MEMORY_STEPS)
            self.trials[j] *= keep
            self.successes[j] *= keep
            num_newer *= accepted / tried if tried else 0.0  # so many reach the next position

    def faded(self, newer: "PositionCounts") -> "PositionCounts":
        """These counts as if the `newer` ones had been added to them.

        Forgetting leaves exp(-n / M) of old counts after n newer steps, M being MEMORY_STEPS, and
        of the newer ones M (1 - exp(-n / M)). So what stays of the old is 1 - newer / M.
        """
        keep = [max(0.0, 1 - tried / MEMORY_STEPS) for tried in newer.trials]
        return PositionCounts(
            [share * value for share, value in zip(keep, self.trials, strict=True)],
            [share * value for share, value in zip(keep, self.successes, strict=True)],
            self.epoch,
        )

    @classmethod
    def total(cls, counts: Iterable["PositionCounts"]) -> "PositionCounts":
        """The sum of several gateways' counts at the latest of their epochs, in any order."""
        rows = list(counts)
        if len(rows) == 2:
            return rows[0]._with(rows[1])
        latest = max([c.epoch for c in rows], default=0)
        shares = [KEPT_AFTER_ALARM ** (latest - c.epoch) for c in rows]
        pairs = list(zip(shares, rows, strict=True))
        return cls(
            [math.fsum([share * c.trials[j] for share, c in pairs]) for j in range(MAX_POSITIONS)],
            [math.fsum([s * c.successes[j] for s, c in pairs]) for j in range(MAX_POSITIONS)],
            latest,
            math.fsum([c.counted for c in rows]),
        )

    def _with(self, other: "PositionCounts") -> "PositionCounts":
        """The `total` of two."""
        latest = max(self.epoch, other.epoch)
        own = KEPT_AFTER_ALARM ** (latest - self.epoch)
        others = KEPT_AFTER_ALARM ** (latest - other.epoch)
        return PositionCounts(
            [own * a + others * b for a, b in zip(self.trials, other.trials, strict=True)],
            [own * a + others * b for a, b in zip(self.successes, other.successes, strict=True)],
            latest,
            self.counted + other.counted,
        )

    def to_json(self) -> dict[str, Any]:
        """The counts of the positions that were tried, with what else isn't 0."""
        used = sum(value > 0 for value in self.trials)
        counts = {"trials": self.trials[:used], "successes": self.successes[:used]}
        more = {"epoch": self.epoch, "counted": self.counted}
        return counts | {key: value for key, value in more.items() if value}

    @classmethod
    def from_json(cls, value: Any) -> "PositionCounts":
        """The counts that `to_json` wrote; raises ValueError for impossible ones."""
        trials, successes = value["trials"], value["successes"]
        padding = [0.0] * (MAX_POSITIONS - len(trials))
        if len(trials) != len(successes) or len(trials) > MAX_POSITIONS:
            raise ValueError("trials and successes differ in length")
        for tried, succeeded in zip(trials, successes, strict=True):
            if not 0 <= succeeded <= tried * (1 + 1e-9) or not tried <= MAX_TRIALS:
                raise ValueError(f"{succeeded} successes of {tried} trials")
        epoch = value.get("epoch", 0)
        if not isinstance(epoch, int) or not 0 <= epoch <= MAX_EPOCH:
            raise ValueError(f"epoch {epoch!r:.20} is not the number of an epoch")
        counted = float(value.get("counted", 0.0))
        if not 0 <= counted < math.inf:
            raise ValueError(f"{counted} trials counted")
        return cls(
            [float(t) for t in trials] + padding,
            [float(s) for s in successes] + padding,
            epoch,
            counted,
        )


# a gateway's counts by scope, and the number of answers behind them
Counted = tuple[int, dict[str, PositionCounts]]


def read_counted(value: Mapping[str, Any]) -> Counted:
    """What `counted_to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
    counts = {str(k): PositionCounts.from_json(v) for k, v in value["counts"].items()}
    return int(value["version"]), counts


def counted_to_json(counted: Counted) -> dict[str, Any]:
    """One gateway's counts as a JSON object."""
    version, counts = counted
    return {"version": version, "counts": {k: c.to_json() for k, c in sorted(counts.items())}}
