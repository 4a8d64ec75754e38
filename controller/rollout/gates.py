"""The gates of a rollout: is the canary worse than the running variant in the same minutes?

Requests are compared in groups of one canary and some stable requests (or the other way round)
that ended in the same window of time, so that load, which moves both, cancels. Each gate asks one
question of a group, whose answer has an expectation of at most 0 while the canary is no worse
than tolerated:

- tok_s, acceptance_length, per task: by how much (log ratio, bounded) is the canary slower?
- ttft and tpot, p50 and p95: is the canary more often beyond that quantile of the stable side's
  earlier requests? (A quantile need not be known exactly, only before; compare Howard and Ramdas,
  "Sequential estimation of quantiles", Bernoulli 28, 2022.)
- error_rate: does it fail more often? Where all requests are the canary's: more often than the
  stable side did before?

All questions are tested at once (sequential.py) with alpha divided by their number, so that alpha
bounds the chance that a canary which is no worse is ever aborted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from trt_mtp.controller.rollout.sequential import Evidence, Values, paired
from trt_mtp.controller.rollout.spec import Gates
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import TrtMtpError

MOST_PAIRED = 8  # stable requests for each canary request: more would hardly narrow a comparison
BOUND = math.log(2)  # of a log ratio; twice as slow counts as any slower
QUANTILES = (50, 95)
MIN_EARLIER = 100  # stable requests before a quantile is asked about
MAX_EARLIER = 4096


class GateFailed(TrtMtpError):
    """The canary is worse than is tolerated; `what` is known of it goes to the history."""

    def __init__(self, why: str, what: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.what = what or {}


class Requests(NamedTuple):
    """Finished requests of one side, [n] each; NaN where a request has no such number."""

    task: Values  # index in TASKS
    is_error: Values  # 0 or 1
    ttft_s: Values
    tpot_s: Values  # seconds for an output token after the first
    tok_s: Values  # output tokens a second of the whole answer
    acceptance_length: Values  # over the drafts that both variants make

    def of_task(self, index: int) -> "Requests":
        """Those of one task."""
        kept = self.task == index
        return Requests(*(column[kept] for column in self))

    @classmethod
    def of(cls, rows: Iterable[tuple[float, ...]]) -> "Requests":
        """From rows in the order of the columns."""
        table = np.array(list(rows), dtype=float).reshape(-1, len(cls._fields))
        return cls(*table.T)


class GateResult(NamedTuple):
    """What one gate has seen so far. `p_value` may be looked at at any time."""

    gate: str
    task: str | None
    num_canary: int
    num_stable: int
    change: float  # of the canary against stable, positive is worse
    unit: str  # "relative" or "share of requests": that failed, or are beyond the quantile
    p_value: float
    threshold: float  # fails at or below
    is_failed: bool

    def sentence(self) -> str:
        """For people, and for the record."""
        what = f"{self.gate} of {self.task}" if self.task else self.gate
        if self.unit == "relative":
            found = f"canary {abs(self.change):.1%} {'worse' if self.change > 0 else 'better'}"
        elif self.task is None and "_p" in self.gate:
            found = f"{self.change:+.1%} of the canary's requests beyond it"
        else:
            found = f"{self.change:+.1%} of the canary's requests"
        return (
            f"{what}: {found}, {self.num_canary} against {self.num_stable} requests"
            f" (p = {self.p_value:.2g}, fails at {self.threshold:.2g})"
        )


@dataclass(slots=True)
class _Test:
    gate: str
    task: str | None
    unit: str
    evidence: Evidence = field(default_factory=Evidence)
    num_canary: int = 0
    num_stable: int = 0
    total: float = 0.0

    def add(self, canary: Values, stable: Values, values: Values, changes: Values) -> None:
        """Groups [n, a] and [n, b], what they bet with, and the change that people read."""
        self.num_canary += canary.size
        self.num_stable += stable.size
        self.total += float(changes.sum())
        self.evidence.add(values)


class GateKeeper:
    """Takes in windows of requests and says which gates failed."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.num_canary = 0
        self._ratios = {
            (name, index): _Test(name, task, "relative")
            for name in ("tok_s", "acceptance_length")
            for index, task in enumerate(TASKS)
        }
        self._quantiles = {
            (name, q): _Test(f"{name}_p{q}", None, "share of requests")
            for name in ("ttft", "tpot")
            for q in QUANTILES
        }
        self._errors = _Test("error_rate", None, "share of requests")
        self._num_stable = self._num_stable_errors = 0
        self._earlier: dict[str, Values] = {name: np.empty(0) for name in ("ttft", "tpot")}

    def add(self, canary: Requests, stable: Requests) -> None:
        """One window's requests of both sides."""
        self.num_canary += len(canary.task)
        self._add_errors(canary.is_error, stable.is_error)
        for name in ("ttft", "tpot"):
            column = f"{name}_s"
            self._add_times(name, _known(canary, column), _known(stable, column))
        for index in np.unique(canary.task).astype(int):
            one, other = canary.of_task(index), stable.of_task(index)
            for name in ("tok_s", "acceptance_length"):
                self._add_ratio(self._ratios[name, index], _known(one, name), _known(other, name))

    def results(self) -> list[GateResult]:
        """Every gate that has seen something, failed ones first."""
        tests = [*self._ratios.values(), *self._quantiles.values(), self._errors]
        threshold = self._gates.alpha / len(tests)
        found = [_result(test, threshold) for test in tests if test.evidence.num]
        return sorted(found, key=lambda result: result.p_value)

    def failed(self) -> list[GateResult]:
        """The gates that the canary did not pass."""
        return [result for result in self.results() if result.is_failed]

    def _add_errors(self, canary: Values, stable: Values) -> None:
        tolerated = self._gates.error_tolerance
        one, other = paired(canary, stable, MOST_PAIRED)
        changes = one.mean(axis=1) - other.mean(axis=1) if len(one) else np.empty(0)
        self._errors.add(one, other, (changes - tolerated) / (1 + tolerated), changes)
        if not len(stable) and self._num_stable:
            before = (self._num_stable_errors + 1) / (self._num_stable + 2)  # Laplace: never 0
            alone = canary.reshape(-1, 1)
            self._errors.add(alone, other, canary - before - tolerated, canary - before)
        self._num_stable += len(stable)
        self._num_stable_errors += int(stable.sum())

    def _add_times(self, name: str, canary: Values, stable: Values) -> None:
        earlier, tolerated = self._earlier[name], 1 + self._gates.tolerance
        if len(earlier) >= MIN_EARLIER and len(canary) and len(stable):
            one, other = paired(canary / tolerated, stable, MOST_PAIRED)
            for q in QUANTILES:
                limit = float(np.percentile(earlier, q))
                changes = (one > limit).mean(axis=1) - (other > limit).mean(axis=1)
                self._quantiles[name, q].add(one, other, changes, changes)
        self._earlier[name] = np.concatenate([earlier, stable])[-MAX_EARLIER:]

    def _add_ratio(self, test: _Test, canary: Values, stable: Values) -> None:
        tolerated = math.log1p(-self._gates.tolerance)
        one, other = paired(np.log(canary), np.log(stable), MOST_PAIRED)
        if len(one):
            # speeds: less is worse. Bounding each pair keeps the expectation 0 under exchange.
            changes = np.clip(other - one, -BOUND, BOUND).mean(axis=1)
            values = np.clip(other - one + tolerated, -BOUND, BOUND).mean(axis=1) / BOUND
            test.add(one, other, values, changes)


def _known(requests: Requests, column: str) -> Values:
    values: Values = getattr(requests, column)
    return values[values > 0]  # not NaN either


def _result(test: _Test, threshold: float) -> GateResult:
    mean = test.total / test.evidence.num
    p_value = test.evidence.p_value
    return GateResult(
        test.gate,
        test.task,
        test.num_canary,
        test.num_stable,
        math.expm1(mean) if test.unit == "relative" else mean,
        test.unit,
        p_value,
        threshold,
        p_value <= threshold,
    )
