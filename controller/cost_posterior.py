"""What observed step times say of the table's errors: one Gaussian posterior over all of them.

The error of log T(K, B) is a Gaussian process (Rasmussen and Williams, "Gaussian Processes for
Machine Learning", MIT Press 2006, chapter 2) on a grid of draft lengths and batches, linear in
log B between them. Its prior says what goes with what. A slower machine is slower at all lengths.
An error of R is much alike at neighboring batches, and at other lengths in proportion to
log(K + 1), because R lies between 1 and K + 1. So an answer at one length teaches the others. Each
answer is a step of a Kalman filter (Journal of Basic Engineering 82, 1960).
"""

import math
from collections.abc import Sequence

import numpy as np

from trt_mtp.controller.position_counts import MAX_POSITIONS

LOG_BATCHES = (0, 2, 4, 6, 8)  # log2 of the grid's batches: 1 to 256
NUM_BATCHES = len(LOG_BATCHES)
# Standard deviations of natural logarithms, and log2 of how far batches are alike
MACHINE = 1.0  # of all step times together: rigs differ threefold
MACHINE_BY_BATCH = 0.3
ALIKE = 3.0
OWN_SHARE = 0.3  # of a length's error of R that it shares with no other
ANSWER = 0.1  # of one answer's mean step time, around its expectation
FORGETTING = 1 / 20_000  # of what is known, with each answer

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Weights = tuple[tuple[int, float], ...]  # (place in the grid, share)


def weights(draft_length: int, batch: float) -> Weights:
    """The two places of the grid that a length and a batch lie between."""
    row = min(draft_length, MAX_POSITIONS) * NUM_BATCHES
    at = min(max(math.log2(batch), 0.0), LOG_BATCHES[-1]) / 2
    low = min(int(at), NUM_BATCHES - 2)
    return (row + low, low + 1 - at), (row + low + 1, at - low)


def prior_covariance(ratio_deviation: float) -> Array:
    """[9 lengths x 5 batches, the same]; `ratio_deviation` is the SD of log R at K = 3."""
    lengths = np.repeat(np.arange(MAX_POSITIONS + 1), NUM_BATCHES)
    log_batches = np.tile(LOG_BATCHES, MAX_POSITIONS + 1)
    alike = np.exp(-0.5 * ((log_batches[:, None] - log_batches) / ALIKE) ** 2)
    size = np.log(lengths + 1.0) / math.log(4.0)
    shared = np.where(lengths[:, None] == lengths, 1.0, 1 - OWN_SHARE**2)
    ratio = ratio_deviation**2 * size[:, None] * size * shared
    return np.asarray(MACHINE**2 + alike * (MACHINE_BY_BATCH**2 + ratio))


class CostPosterior:
    """Mean and covariance of the errors of log T(K, B)."""

    def __init__(self, ratio_deviation: float) -> None:
        self.ratio_deviation = ratio_deviation
        self._prior = prior_covariance(ratio_deviation)
        self._covariance = self._prior.copy()
        self.means: Sequence[float] = [0.0] * len(self._prior)

    def mean(self, places: Weights) -> float:
        """The expected error."""
        return sum([share * self.means[place] for place, share in places])

    def deviation_between(self, one: Weights, other: Weights) -> float:
        """The standard deviation of the difference of two errors: of a ratio of step times."""
        signed = [*one, *((place, -share) for place, share in other)]
        found = self._covariance
        variance = sum(a * b * found[i, j] for i, a in signed for j, b in signed)
        return math.sqrt(max(float(variance), 0.0))

    def observe(self, places: Weights, error: float) -> None:
        """Learn from one answer's error, log(seen / expected by the table)."""
        self._covariance += FORGETTING * (self._prior - self._covariance)
        column = sum((share * self._covariance[place] for place, share in places), np.zeros(1))
        variance = sum(share * float(column[place]) for place, share in places)
        gain = column / (variance + ANSWER**2)
        self._covariance -= np.outer(gain, column)
        self.means = (np.array(self.means) + gain * (error - self.mean(places))).tolist()

    def to_json(self) -> dict[str, list[float]]:
        """Means, and the lower triangle of the covariance by rows."""
        rows = np.tril_indices(len(self._prior))
        return {"means": list(self.means), "covariance": self._covariance[rows].tolist()}

    def restored(self, value: dict[str, list[float]]) -> "CostPosterior":
        """What `to_json` wrote, with this one's prior; raises ValueError for anything else."""
        means, triangle = np.array(value["means"], float), np.array(value["covariance"], float)
        covariance = np.zeros_like(self._prior)
        if means.shape != (len(covariance),):
            raise ValueError("the means are not those of the grid")
        covariance[np.tril_indices(len(covariance))] = triangle
        covariance += np.tril(covariance, -1).T
        if not (np.isfinite(means).all() and np.isfinite(covariance).all()):
            raise ValueError("a number is not finite")
        if np.linalg.eigvalsh(covariance)[0] < -1e-6:
            raise ValueError("the covariance has a negative eigenvalue")
        other = CostPosterior(self.ratio_deviation)
        other.means, other._covariance = means.tolist(), covariance
        return other
