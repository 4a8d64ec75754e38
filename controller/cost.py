"""Step time by draft length and load: R(K, B) times the plain step, corrected by what is seen.

R(K, B) is the time of one draft-and-verify step at draft length K with B requests in flight, in
units of a plain step at the same B. Speedup is AL(K) / R(K, B).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Curve = tuple[tuple[int, float], ...]  # (batch, value), ascending

CORRECTION_RATE = 0.05  # weight of one answer in a cell's running mean
COMMON_RATE = 0.02
MAX_CORRECTION = math.log(3.0)
IMPLAUSIBLE = math.log(20.0)  # further off than this is a clock that jumped, not a slow step


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

    A draft length that was not measured lies on the line through its neighbours. Step time never
    falls as the batch grows, whatever noise the measurements hold.
    """

    plain_step_s: Curve
    ratios: Mapping[int, Curve]
    common: float = 0.0  # log of seen over expected, all answers: says nothing of which is best
    num_observed: int = 0
    corrections: dict[tuple[int, int], float] = field(default_factory=dict)  # a cell's, beyond it
    _cache: dict[tuple[int, int], float] = field(default_factory=dict)
    _common_factor: float = 1.0

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

    def step_s(self, draft_length: int, batch: int) -> float:
        """Expected seconds of one step, corrected by what was observed."""
        if batch < 1:
            batch = 1
        step = self._cache.get((draft_length, batch))
        if step is None:
            if len(self._cache) > 100_000:
                self._cache.clear()
            step = self._calibrated(draft_length, batch)
            step *= math.exp(self.corrections.get(_cell(draft_length, batch), 0.0))
            self._cache[draft_length, batch] = step
        return step * self._common_factor

    def _calibrated(self, draft_length: int, batch: int) -> float:
        """Between the step times at the measured batches, each at least its predecessor's."""
        curve, highest = [], 0.0
        for knot in sorted({b for c in (self.plain_step_s, *self.ratios.values()) for b, _ in c}):
            step = interpolate(self.plain_step_s, knot) * self.ratio(draft_length, knot)
            highest = max(highest, step)
            curve.append((knot, highest))
        return interpolate(tuple(curve), batch)

    def observe(self, draft_length: int, batch: int, seconds: float, num_steps: int) -> bool:
        """Correct the cell by one answer's time; False when the time can't be right."""
        if not (math.isfinite(seconds) and seconds > 0 and num_steps > 0 and batch > 0):
            return False
        cell = _cell(draft_length, batch)
        error = math.log(seconds / num_steps / self._calibrated(draft_length, batch))
        if abs(error) > IMPLAUSIBLE:
            return False
        self.num_observed += 1
        self.common += (error - self.common) * max(1 / self.num_observed, COMMON_RATE)
        self.common = _bounded(self.common)
        self._common_factor = math.exp(self.common)
        old = self.corrections.get(cell, 0.0)
        new = old + CORRECTION_RATE * (error - self.common - old)
        self.corrections[cell] = _bounded(new)
        for known in [key for key in self._cache if _cell(*key) == cell]:
            del self._cache[known]
        return True

    def restore(
        self, common: float, num_observed: int, corrections: Mapping[tuple[int, int], float]
    ) -> None:
        """Take over corrections that were learned before."""
        self.common, self.num_observed = _bounded(common), max(num_observed, 0)
        self._common_factor = math.exp(self.common)
        self.corrections = {cell: _bounded(value) for cell, value in corrections.items()}
        self._cache.clear()


def _bounded(correction: float) -> float:
    return min(max(correction, -MAX_CORRECTION), MAX_CORRECTION)


def _cell(draft_length: int, batch: int) -> tuple[int, int]:
    """Corrections are kept by draft length and power of two of the batch."""
    return draft_length, max(batch, 1).bit_length()
