"""The advice of a calibration, from the estimates of all cells."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trt_mtp.controller.calibrate.confidence import interval, quantile, rounded
from trt_mtp.controller.calibrate.draws import Array
from trt_mtp.controller.calibrate.fit import Estimates, likely_losses
from trt_mtp.controller.calibration import (
    ALLOWED_LOSS,
    BestLength,
    Crossover,
    Interval,
    PredictionQuality,
    Recommendation,
)

FEWEST_PREDICTED = 3  # cells that say how good predictions are
TIE = 0.01  # a shorter draft length that gives away no more wins within the uncertainty


def step_ratios(estimates: Estimates) -> dict[int, dict[int, float]]:
    """R by draft length and load, in the form of a profile."""
    return {
        length: {
            load: rounded(float(curve[at])) for load, curve in sorted(estimates.ratios.items())
        }
        for at, length in enumerate(estimates.draft_lengths)
        if length > 0
    }


def prediction_quality(errors: Iterable[float]) -> PredictionQuality | None:
    """The quality of the logs of seen over predicted speedups; None if they are too few."""
    sizes = sorted(abs(math.expm1(error)) for error in errors)
    if len(sizes) < FEWEST_PREDICTED:
        return None
    return PredictionQuality(
        num_cells=len(sizes),
        median_abs_error=rounded(quantile(sizes, 0.5)),
        p90_abs_error=rounded(quantile(sizes, 0.9)),
    )


def crossovers(estimates: Estimates) -> Iterator[Crossover]:
    """Where the log of the speedup falls through 0, linear in the log of the concurrency."""
    loads = sorted({load for _, load in estimates.speedups})
    for task in dict.fromkeys(task for task, _ in estimates.speedups):
        for at, length in enumerate(estimates.draft_lengths):
            if length:
                logs = [float(estimates.speedups[task, load][0, at]) for load in loads]
                yield Crossover(task=task, draft_length=length, concurrency=crossing(loads, logs))


def crossing(loads: Sequence[int], logs: Sequence[float]) -> float | None:
    """The first load at which `logs` is below 0; None if it never is.

    >>> crossing((1, 4), (0.1, -0.1))
    2.0
    """
    for at, value in enumerate(logs):
        if value < 0:
            if at == 0:
                return float(loads[0])
            before, low, high = logs[at - 1], math.log(loads[at - 1]), math.log(loads[at])
            return rounded(math.exp(low + (high - low) * before / (before - value)))
    return None


def recommendation(estimates: Estimates) -> Recommendation:
    """The best length of each task and load, the best single one, and what routing adds."""
    lengths, lowest = estimates.draft_lengths, min(load for _, load in estimates.speedups)
    chosen = {pair: best_index(draws) for pair, draws in estimates.speedups.items()}
    times = _mean_times(
        [draws for (_, load), draws in estimates.speedups.items() if load == lowest]
    )
    single = best_index(-np.log(times))
    static_times = _mean_times(list(estimates.speedups.values()))[:, single]
    routed_times = np.mean(
        [np.exp(-d[:, chosen[p]]) for p, d in estimates.speedups.items()], axis=0
    )
    routed = _interval_of(static_times / routed_times)
    return Recommendation(
        draft_length=lengths[single],
        speedup=_interval_of(1 / times[:, single]),
        routed_speedup=routed,
        hold_one=routed.value - 1 <= (routed.high - routed.low) / 2,
        best=tuple(
            BestLength(
                task=task,
                concurrency=load,
                draft_length=lengths[chosen[task, load]],
                speedup=_interval_of(np.exp(draws[:, chosen[task, load]])),
                ties=tuple(lengths[k] for k in _ties(draws, chosen[task, load])),
                may_lose=_may_lose(draws, chosen[task, load]),
            )
            for (task, load), draws in estimates.speedups.items()
        ),
    )


def best_index(draws: Array) -> int:
    """The index of the best length, or of a shorter one that ties and loses no more than TIE.

    A choice that is settled stays so.
    """
    best = int(np.argmax(draws[0]))
    most = max(_may_lose(draws, best), ALLOWED_LOSS)
    for at in _ties(draws, best):
        is_near = at < best and draws[0, best] - draws[0, at] <= math.log1p(TIE)
        if is_near and _may_lose(draws, at) <= most:
            return at
    return best


def _ties(draws: Array, best: int) -> list[int]:
    """The indexes of the lengths that beat `best` in 2.5% of the draws or more."""
    better = (draws[1:] > draws[1:, best : best + 1]).mean(axis=0)
    return [at for at, share in enumerate(better) if at != best and share >= 0.025]


def _may_lose(draws: Array, chosen: int) -> float:
    return rounded(math.expm1(float(likely_losses(draws, chosen).max())))


def _mean_times(draws_of_cells: Sequence[Array]) -> Array:
    """Mean time per token by draft length, in plain times; all cells count alike."""
    return np.asarray(np.mean([np.exp(-draws) for draws in draws_of_cells], axis=0))


def _interval_of(values: Array) -> Interval:
    """The interval of draws [1 + n], of which row 0 is the estimate."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    value = float(values[0])
    return interval(value, min(float(low), value), max(float(high), value))
