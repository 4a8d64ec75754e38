"""A sequential test, valid after every request: evidence by betting.

Bets against "the mean is at most 0" multiply a capital by 1 + bet * x for every x seen. While that
hypothesis holds no bet can be expected to win. So the chance that the capital ever reaches
1 / alpha is at most alpha, whenever and however often one looks (Ville's inequality). See
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86
(2024), and Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", Annals of Statistics 49 (2021). It needs no distribution and no fixed number
of requests, only values in [-1, 1].
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Bets small enough for a loss of 2% in noisy times and large enough for errors. The mean of their
# capitals is a capital itself, and costs at most log(number of bets).
BETS: Values = np.geomspace(0.01, 0.9, 16)


@dataclass(slots=True)
class Evidence:
    """The evidence so far against "the mean of these values is at most 0"."""

    num: int = 0
    peak: float = 0.0  # largest log capital seen
    _log_capitals: Values = field(default_factory=lambda: np.zeros(len(BETS)))

    def add(self, values: Values) -> None:
        """Take in values in [-1, 1], in any grouping."""
        if not len(values):
            return
        self.num += len(values)
        self._log_capitals += np.log1p(np.outer(values, BETS)).sum(axis=0)
        largest = float(self._log_capitals.max())
        mean = math.log(float(np.exp(self._log_capitals - largest).mean()))
        self.peak = max(self.peak, largest + mean)

    @property
    def p_value(self) -> float:
        """Valid at any time: the chance of as much evidence, ever, if the mean were at most 0."""
        return math.exp(-self.peak)


def paired(canary: Values, stable: Values, most: int) -> tuple[Values, Values]:
    """Groups for a comparison: [n, a] and [n, b], each value in one group, a or b is 1.

    The scarcer side has one value in a group, the other up to `most`. Under "no difference" the
    two are exchangeable, so the mean difference of a group has expectation 0.
    """
    few, many = (canary, stable) if len(canary) <= len(stable) else (stable, canary)
    if not len(few):
        return canary[:0].reshape(0, 1), stable[:0].reshape(0, 1)
    each = max(1, min(len(many) // len(few), most))
    one, others = few.reshape(-1, 1), many[: len(few) * each].reshape(len(few), each)
    return (one, others) if few is canary else (others, one)
