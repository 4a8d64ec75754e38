"""Speedups as they were measured, where servers don't tell what was accepted.

Without acceptance AL / R can't be formed, and no cell says anything of another: each task, draft
length and load stands for itself.
"""

import math

import numpy as np

from trt_mtp.controller.calibrate.draws import FAILED, NUM_DRAWS, Array, spread, weights
from trt_mtp.controller.calibrate.results import Results, Settings
from trt_mtp.controller.calibration import CellKey

UNKNOWN = 0.3  # standard deviation of the log of a speedup that was not measured


def measured_speedups(
    settings: Settings, results: Results, rng: np.random.Generator
) -> dict[tuple[str, int], Array]:
    """Draws of log speedups by task and load, [1 + NUM_DRAWS, lengths], of all tasks measured.

    What was not measured is around 1, far off: nothing is decided by it.
    """
    tasks = {key.task for key in results.speedups}
    return {
        (task, load): np.stack(
            [
                _draws(results, CellKey(task, length, load), rng)
                for length in settings.draft_lengths
            ],
            axis=1,
        )
        for task in settings.tasks
        if task in tasks
        for load in settings.concurrencies
    }


def _draws(results: Results, key: CellKey, rng: np.random.Generator) -> Array:
    """Of one cell, [1 + NUM_DRAWS]: the mean over its pairs of answers, then draws of it."""
    if key.draft_length == 0:
        return np.zeros(1 + NUM_DRAWS)
    if key in results.errors:
        return np.full(1 + NUM_DRAWS, FAILED)
    values = np.array(results.speedups.get(key, ()))
    if len(values) < 2:
        noise = UNKNOWN * rng.standard_normal(NUM_DRAWS)
        return np.concatenate([[0.0], noise]) + (values.mean() if len(values) else 0.0)
    draws = spread(weights(len(values), rng) @ values, len(values))
    wider = math.sqrt(results.effect(key.concurrency))
    return np.asarray(draws[0] + wider * (draws - draws[0]))
