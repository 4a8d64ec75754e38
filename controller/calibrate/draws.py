"""An estimate and its draws: row 0, then NUM_DRAWS of a Bayesian bootstrap.

Rubin, "The Bayesian bootstrap", Annals of Statistics 9, 1981.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
NUM_DRAWS = 400
FAILED = -5.0  # log of the AL, or of the speedup, of a length that a task can't be answered at


def spread(draws: Array, n: int) -> Array:
    """Row 0 is the estimate, the others draws over `n` samples, moved apart as few samples need.

    The bootstrap's variance is (n - 1) / (n + 1) of the usual one, and Student's t with n - 1
    degrees of freedom has (n - 1) / (n - 3) of the normal's.
    """
    factor = math.sqrt((n + 1) / (n - 3)) if n > 3 else 3.0
    return np.concatenate([draws[:1], draws[:1] + factor * (draws[1:] - draws[:1])])


def weights(n: int, rng: np.random.Generator) -> Array:
    """Of `n` samples: equal ones in row 0, then NUM_DRAWS random ones; each row sums to 1."""
    return np.concatenate([np.full((1, n), 1 / n), rng.dirichlet(np.ones(n), NUM_DRAWS)])
