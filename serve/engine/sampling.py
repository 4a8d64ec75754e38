"""Drawing one token from one row of logits, the same way at every draft length.

Randomness is a function of the request's seed and the token's position only, so a position
draws the same number whether it is reached by a plain step or inside a verify step.
"""

import numpy as np
import numpy.typing as npt

from trt_mtp.serve.engine.compiler import kernel
from trt_mtp.serve.engine.kernels import F32, Array, exp32

NO_TOKEN = -1  # drawn from logits that are no numbers


@kernel
def uniform(seed: np.uint64, position: int) -> float:
    """A number in [0, 1) from (seed, position): two rounds of splitmix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(position)
    for _ in range(2):
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return float(x >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # 2**-53


@kernel
def argmax(row: Array) -> int:
    """The index of the largest value; the lowest one on a tie."""
    best, top = 0, row[0]
    for i in range(1, row.shape[0]):
        if row[i] > top:
            best, top = i, row[i]
    return best


@kernel
def _threshold(weights: Array, top_k: int, mass: float) -> np.float32:
    """A weight such that those at or above it are >= `top_k` many or hold >= `mass`."""
    limit = F32(1)
    while limit > F32(1e-37):
        limit *= F32(0.25)
        count, total = 0, 0.0
        for i in range(weights.shape[0]):
            if weights[i] >= limit:
                count += 1
                total += weights[i]
        if (top_k > 0 and count >= top_k) or (top_k == 0 and total >= mass):
            return limit
    return F32(0)


@kernel
def _keep_top(weights: Array, top_k: int, top_p: float) -> tuple[npt.NDArray[np.int64], int, float]:
    """Indices by falling weight (ties by index), how many stay, and their total weight."""
    total = 0.0
    for i in range(weights.shape[0]):
        total += weights[i]
    limit = _threshold(weights, top_k, top_p * total)
    ids = np.nonzero(weights >= limit)[0]
    order = ids[np.argsort(-weights[ids], kind="mergesort")]
    kept = min(top_k, order.shape[0]) if top_k > 0 else order.shape[0]
    if top_k > 0:
        total = 0.0
        for i in range(kept):
            total += weights[order[i]]
    mass = 0.0
    for i in range(kept):
        mass += weights[order[i]]
        if mass >= top_p * total:
            return order, i + 1, mass
    return order, kept, mass


@kernel
def sample(
    row: Array, temperature: float, top_k: int, top_p: float, draw: float, weights: Array
) -> int:
    """The token for `draw` in [0, 1): top-k first, then top-p of what is left, then inverse CDF.

    row [V] logits; weights [V] is scratch. Temperature 0 is the argmax, and so is one so low that
    its inverse would overflow. NO_TOKEN where the largest logit is not finite, as after an
    overflow inside the model.
    """
    best = argmax(row)
    if not np.isfinite(row[best]):
        return NO_TOKEN
    if temperature < 1e-9:
        return best
    scale, top = F32(1.0 / temperature), row[best]
    for i in range(row.shape[0]):
        weights[i] = exp32((row[i] - top) * scale)
    if top_k <= 0 and top_p >= 1.0:
        total = 0.0
        for i in range(row.shape[0]):
            total += weights[i]
        goal, mass = draw * total, 0.0
        for i in range(row.shape[0]):
            mass += weights[i]
            if mass > goal:
                return i
        return best
    order, kept, total = _keep_top(weights, top_k, top_p)
    goal, mass = draw * total, 0.0
    for i in range(kept):
        mass += weights[order[i]]
        if mass > goal:
            return int(order[i])
    return int(order[0])
