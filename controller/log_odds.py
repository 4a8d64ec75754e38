"""Chances and the logarithms of their odds, in which differences of acceptance add up."""

import math
from collections.abc import Sequence


def odds(p: float) -> float:
    """The odds, of a chance within those that `logit` tells apart."""
    p = 1e-4 if p < 1e-4 else 1 - 1e-4 if p > 1 - 1e-4 else p
    return p / (1 - p)


def logit(p: float) -> float:
    """The logarithm of the odds, finite for 0 and 1."""
    return math.log(odds(p))


def shifted(chances: Sequence[float], by: float) -> tuple[float, ...]:
    """Each chance with its odds multiplied by exp(`by`)."""
    factor = math.exp(by)
    return tuple([factor * c / (1 - c + factor * c) for c in chances])
