"""Chances and the logarithms of their odds, in which differences of acceptance add up."""

import math
from collections.abc import Sequence


def logit(p: float) -> float:
    """The logarithm of the odds, finite for 0 and 1."""
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def shifted(chances: Sequence[float], by: float) -> tuple[float, ...]:
    """Each chance with its odds multiplied by exp(`by`)."""
    factor = math.exp(by)
    return tuple([factor * c / (1 - c + factor * c) for c in chances])
