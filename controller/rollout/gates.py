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
  stable side may have done before (an upper confidence bound)?

All questions are tested at once (sequential.py) with alpha divided by their number and one more for
that bound, so that alpha bounds the chance that a canary which is no worse is ever aborted. That
holds where each of a window's requests could as well have been on the other side: sides by chance,
few requests of a session (session_cap.py), and the same mix of requests on both.
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
# Of a log ratio: pairs further apart count as this far. Bets are a share of it, so it follows the
# noise: the quantile of earlier pairs' distances, never so small that the tolerance is beyond it.
WIDEST, NARROWEST, BOUND_PERCENTILE = math.log(2), 0.05, 95
MIN_PAIRS, MAX_PAIRS = 64, 1024  # pairs that the bound comes from
QUANTILES = (50, 95)
MIN_EARLIER = 100  # stable requests before a quantile is asked about
MAX_EARLIER = 4096


class GateFailedError(TrtMtpError):
    """The canary is worse than tolerated; `what` was seen goes to the history."""

    def __init__(self, why: str, what: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.what = what or {}


class Requests(NamedTuple):
    """Finished requests of one side, [n] each; NaN if a request has no such number."""

    task: Values  # index in TASKS
    is_error: Values  # 0 or 1
    ttft_s: Values
    tpot_s: Values  # seconds for an output token after the first
    tok_s: Values  # output tokens a second of the whole answer
    acceptance_length: Values  # in tokens, over the drafts that both variants make

    def of_task(self, index: int) -> "Requests":
        """The requests of one task."""
        kept = self.task == index
        return Requests(*(column[kept] for column in self))

    @classmethod
    def of(cls, rows: Iterable[tuple[float, ...]]) -> "Requests":
        """Requests from rows in the order of the columns."""
        table = np.array(list(rows), dtype=float).reshape(-1, len(cls._fields))
        return cls(*table.T)


class GateResult(NamedTuple):
    """What one gate has seen so far; `p_value` is valid at any time."""

    gate: str
    task: str | None
    num_canary: int
    num_stable: int
    change: float  # of the canary against stable, positive is worse
    unit: str  # "relative" or "share of requests": that failed, or are beyond the quantile
    p_value: float
    threshold: float  # fails at or below
    is_failed: bool
    could_miss: float | None = None  # the loss that so many requests show half the time

    def sentence(self) -> str:
        """The result for people and for the history."""
        what = f"{self.gate} of {self.task}" if self.task else self.gate
        if self.unit == "relative":
            comparison = f"canary {abs(self.change):.1%} {'worse' if self.change > 0 else 'better'}"
        elif self.task is None and "_p" in self.gate:
            comparison = f"{self.change:+.1%} of the canary's requests beyond it"
        else:
            comparison = f"{self.change:+.1%} of the canary's requests"
        return (
            f"{what}: {comparison}, {self.num_canary} against {self.num_stable} requests"
            f" (p = {self.p_value:.2g}, fails at {self.threshold:.2g}){self._missed()}"
        )

    def _missed(self) -> str:
        if self.could_miss is None or self.is_failed:
            return ""
        return f"; a loss of {self.could_miss:.1%} may still be missed"


@dataclass(slots=True)
class _Test:
    gate: str
    task: str | None
    unit: str
    evidence: Evidence = field(default_factory=Evidence)
    num_canary: int = 0
    num_stable: int = 0
    total: float = 0.0
    squares: float = 0.0
    distances: Values = field(default_factory=lambda: np.empty(0))  # of earlier pairs

    def add(self, canary: Values, stable: Values, values: Values, changes: Values) -> None:
        """Add groups [n, a] and [n, b], their bets [n], and their changes [n] for people."""
        self.num_canary += canary.size
        self.num_stable += stable.size
        self.total += float(changes.sum())
        self.squares += float((changes**2).sum())
        self.evidence.add(values)

    def bound(self) -> float:
        """How far apart two requests may count, by pairs that were seen before."""
        if len(self.distances) < MIN_PAIRS:
            return WIDEST
        typical = float(np.percentile(self.distances, BOUND_PERCENTILE))
        return min(max(typical, NARROWEST), WIDEST)

    def could_miss(self, tolerated: float, threshold: float) -> float | None:
        """The relative loss that is found half the time with so many groups; None if not yet.

        The best bet on a mean d of values with variance s^2 gains about d^2 / 2 s^2 each (Waudby-
        Smith and Ramdas 2024, section 5), and ln(1 / threshold) has to be gained.
        """
        num = self.evidence.num
        if self.unit != "relative" or num < MIN_PAIRS:
            return None
        variance = self.squares / num - (self.total / num) ** 2
        needed = math.sqrt(2 * math.log(1 / threshold) * max(variance, 0.0) / num)
        return -math.expm1(-(tolerated + needed))


class GateKeeper:
    """Collects windows of requests and tells which gates failed."""

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
        num_tests = len(self._ratios) + len(self._quantiles) + 1
        self._threshold = gates.alpha / (num_tests + 1)  # one more for the bound of errors before
        self._num_stable = self._num_stable_errors = 0
        self._earlier: dict[str, Values] = {name: np.empty(0) for name in ("ttft", "tpot")}

    def add(self, canary: Requests, stable: Requests) -> None:
        """Add one window's requests of both sides."""
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
        """Every gate that has seen requests, failed ones first."""
        tests = [*self._ratios.values(), *self._quantiles.values(), self._errors]
        tolerated = -math.log1p(-self._gates.tolerance)
        results = [_result(test, self._threshold, tolerated) for test in tests if test.evidence.num]
        return sorted(results, key=lambda result: result.p_value)

    def failed(self) -> list[GateResult]:
        """The gates that the canary did not pass."""
        return [result for result in self.results() if result.is_failed]

    def _add_errors(self, canary: Values, stable: Values) -> None:
        tolerated = self._gates.error_tolerance
        one, other = paired(canary, stable, MOST_PAIRED)
        changes = one.mean(axis=1) - other.mean(axis=1) if len(one) else np.empty(0)
        self._errors.add(one, other, (changes - tolerated) / (1 + tolerated), changes)
        if not len(stable) and self._num_stable:
            before = self._num_stable_errors / self._num_stable
            most = upper_bound(self._num_stable_errors, self._num_stable, self._threshold)
            alone, worse = canary.reshape(-1, 1), canary - most - tolerated
            self._errors.add(alone, other, worse / (1 + tolerated), canary - before)
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
        if not len(one):
            return
        # Speeds: less is worse. A bound on each pair, from earlier windows alone, keeps the
        # expectation 0 under exchange.
        bound, slower = test.bound(), other - one
        changes = np.clip(slower, -WIDEST, WIDEST).mean(axis=1)
        values = np.clip(slower + tolerated, -bound, bound).mean(axis=1) / bound
        test.add(one, other, values, changes)
        test.distances = np.concatenate([test.distances, abs(slower).ravel()])[-MAX_PAIRS:]


def _known(requests: Requests, column: str) -> Values:
    values: Values = getattr(requests, column)
    return values[values > 0]  # not NaN either


def upper_bound(num_errors: int, num: int, chance: float) -> float:
    """The rate that errors exceed with at most `chance`, having been `num_errors` of `num`.

    Where num KL(seen || rate) = ln(1 / chance), the Chernoff bound (Hoeffding, JASA 58, 1963).

    >>> round(upper_bound(4, 200, 0.01), 3)
    0.066
    """
    seen, low, high = num_errors / num, num_errors / num, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        divergence = seen * math.log(seen / rate) if seen else 0.0
        if seen < 1:
            divergence += (1 - seen) * math.log((1 - seen) / (1 - rate))
        low, high = (low, rate) if num * divergence > math.log(1 / chance) else (rate, high)
    return high


def _result(test: _Test, threshold: float, tolerated: float) -> GateResult:
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
        test.could_miss(tolerated, threshold),
    )
