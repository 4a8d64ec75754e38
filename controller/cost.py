"""Step time by draft length and load: R(K, B) times the plain step, corrected by observations.

R(K, B) is the time of one draft-and-verify step at draft length K with B requests in flight, in
units of a plain step at the same B. Speedup is AL(K) / R(K, B).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trt_mtp.controller.context_cost import NO_CONTEXT, ContextCost
from trt_mtp.controller.cost_posterior import CostPosterior, weights

Curve = tuple[tuple[int, float], ...]  # (batch, value), ascending

UNKNOWN_RATIO = 0.35  # SD of the error of log R(3, B) of another machine's table, about as far as
# that of controller/profile.py is from the roofline of an H100 (-0.8 to 0.5)
IMPLAUSIBLE = math.log(20.0)  # a time further off than this is a clock that jumped, not a slow step


def interpolate(curve: Curve, batch: float) -> float:
    """The curve at `batch`, linear in log batch, flat beyond its ends.

    >>> interpolate(((1, 1.0), (4, 2.0)), 2)
    1.5
    """
    at = bisect_right(curve, batch, key=lambda point: point[0])
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (low, value), (high, next_value) = curve[at - 1], curve[at]
    share = math.log(batch / low) / math.log(high / low)
    return value + share * (next_value - value)


def between_lengths(lengths: Sequence[int], draft_length: int) -> tuple[int, int, float]:
    """Two lengths to interpolate between (or to extrapolate from) and the second one's share."""
    if len(lengths) == 1:
        return lengths[0], lengths[0], 0.0
    at = min(max(bisect_right(lengths, draft_length), 1), len(lengths) - 1)
    low, high = lengths[at - 1], lengths[at]
    return low, high, (draft_length - low) / (high - low)


@dataclass(slots=True)
class StepCost:
    """The step times of one rig. `ratios` maps draft lengths to R's curve; length 0 is 1.

    `ratio_deviation` is the standard deviation of the error of log R(3, B) in that table, and
    `context` says what other contexts than the table's cost.

    A draft length that was not measured lies on the line through its neighbors. Step time never
    falls as the batch grows, whatever noise the measurements hold.
    """

    plain_step_s: Curve
    ratios: Mapping[int, Curve]
    ratio_deviation: float = UNKNOWN_RATIO
    context: ContextCost = NO_CONTEXT
    num_observed: int = 0
    posterior: CostPosterior = field(init=False)
    _tabled: dict[tuple[int, float], float] = field(default_factory=dict)
    _cache: dict[tuple[int, float], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.posterior = CostPosterior(self.ratio_deviation)

    def ratio(self, draft_length: int, batch: float) -> float:
        """R(K, B) as calibrated, at least 1."""
        if draft_length == 0:
            return 1.0
        if draft_length in self.ratios:
            return max(1.0, interpolate(self.ratios[draft_length], batch))
        low, high, share = between_lengths([0, *sorted(self.ratios)], draft_length)
        low_ratio = interpolate(self.ratios[low], batch) if low else 1.0
        high_ratio = interpolate(self.ratios[high], batch) if high else 1.0
        return max(1.0, low_ratio + share * (high_ratio - low_ratio))

    def step_s(self, draft_length: int, batch: float, context_tokens: float | None = None) -> float:
        """Expected seconds of one step, corrected by what was observed.

        `context_tokens` are those of all requests in flight together; None: the table's own.
        """
        if batch < 1:
            batch = 1
        known = self._cache.get((draft_length, batch))
        if known is None:
            factor = math.exp(self.posterior.mean(weights(draft_length, batch)))
            known = self._cache[draft_length, batch] = self._calibrated(draft_length, batch), factor
        table_s, factor = known
        return factor * self.context.step_s(table_s, draft_length, batch, context_tokens)

    def deviation_between(self, one: tuple[int, int], other: tuple[int, int]) -> float:
        """The standard deviation of log(step / step) of two pairs of draft length and batch."""
        return self.posterior.deviation_between(weights(*one), weights(*other))

    def _calibrated(self, draft_length: int, batch: float) -> float:
        """Between the step times at the measured batches, each at least its predecessor's."""
        known = self._tabled.get((draft_length, batch))
        if known is not None:
            return known
        if len(self._tabled) > 100_000:
            self._tabled.clear()
        curve, highest = [], 0.0
        for knot in sorted({b for c in (self.plain_step_s, *self.ratios.values()) for b, _ in c}):
            step = interpolate(self.plain_step_s, knot) * self.ratio(draft_length, knot)
            highest = max(highest, step)
            curve.append((knot, highest))
        step = self._tabled[draft_length, batch] = interpolate(tuple(curve), batch)
        return step

    def observe(
        self, draft_length: int, batch: float, seconds: float, num_steps: int,
        context_tokens: float | None = None,
    ) -> bool:  # fmt: skip
        """Learn from one answer's time; False if the time can't be right.

        `batch` and `context_tokens` are means over the answer's steps.
        """
        if not (math.isfinite(seconds) and seconds > 0 and num_steps > 0 and batch > 0):
            return False
        batch = max(round(4 * batch) / 4, 1)  # means are many, and tables of them are kept
        table_s = self._calibrated(draft_length, batch)
        expected_s = self.context.step_s(table_s, draft_length, batch, context_tokens)
        error = math.log(seconds / num_steps / expected_s)
        if abs(error) > IMPLAUSIBLE:
            return False
        self.num_observed += 1
        self.posterior.observe(weights(draft_length, batch), error)
        self._cache.clear()
        return True

    def restore(self, posterior: CostPosterior, num_observed: int) -> None:
        """Restore what was learned before."""
        self.posterior, self.num_observed = posterior, max(num_observed, 0)
        self._cache.clear()
