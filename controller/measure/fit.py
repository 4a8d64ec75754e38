"""From the cells that were measured to all: log speedup = log AL(task, K) - log R(K, B).

Uncertainty is a Bayesian bootstrap (Rubin, "The Bayesian bootstrap", Annals of Statistics 9, 1981)
over prompts: every draw weighs each task's prompts, and each cell's pairs, at random; draws of
times lie further apart where the answers of a batch vary together. Cells that were measured pull
their own estimate towards what was seen there, by how well the two factors predict the others (the
model's error, from predicting each cell without its own data).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trt_mtp.controller.acceptance import DECAY_RATIO
from trt_mtp.controller.counts import MAX_POSITIONS
from trt_mtp.controller.measure.results import CellKey, Results, Settings, Survival

Array = npt.NDArray[np.float64]
NUM_DRAWS = 400
SMALLEST_ERROR = 0.01  # of the product of the two factors, as a logarithm
FAILED = -5.0  # log of the speedup that a length gets for a task that it can't answer
FEWEST_PAIRS = 4  # of a cell that says something of the model's error


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is expected of every task at every draft length and concurrency."""

    draft_lengths: tuple[int, ...]
    # logs by task and concurrency, [1 + NUM_DRAWS, num_lengths]: the estimate, then the draws
    speedups: dict[tuple[str, int], Array]
    ratios: dict[int, Array]  # R by draft length, of each concurrency; rises with the length
    errors: tuple[float, ...]  # log of seen over predicted, of the cells that others predict

    def decisions(self) -> Iterator[tuple[str, int]]:
        """Each task and concurrency to choose a draft length for."""
        yield from self.speedups

    def open_loss(self, task: str, concurrency: int) -> tuple[float, list[int]]:
        """What choosing the best length may cost against another (95 %), and who may be better."""
        draws = self.speedups[task, concurrency]
        best = int(np.argmax(draws[0]))
        gains = draws[1:] - draws[1:, best : best + 1]
        upper = np.quantile(gains, 0.975, axis=0)
        contenders = [k for k, gain in zip(self.draft_lengths, upper, strict=True) if gain > 0]
        loss = float(np.delete(upper, best).max(initial=0.0))
        return loss, sorted({*contenders, self.draft_lengths[best]})


def estimate(settings: Settings, results: Results) -> Estimates:
    """Both factors and their product for all tasks that were measured."""
    rng = np.random.default_rng(settings.seed)
    lengths, loads = settings.draft_lengths, settings.concurrencies
    log_ratios = {load: _ratio_draws(results, lengths, load, rng) for load in loads}
    _fill(log_ratios, loads)
    errors = tuple(_prediction_errors(settings, results))
    model_error = _model_error(errors, results)
    speedups = {}
    for task in settings.tasks:
        acceptance = _acceptance_draws(results, settings, task, rng)
        if acceptance is None or not results.ratios:
            continue
        for load in loads:
            predicted = acceptance - log_ratios[load]
            noise = rng.normal(0.0, model_error, (NUM_DRAWS, len(lengths)))
            predicted[1:, 1:] += noise[:, 1:]
            speedups[task, load] = _with_seen(
                predicted, results, lengths, task, load, model_error, rng
            )
            speedups[task, load][:, _failed(results, task, lengths)] = FAILED
    ratios = {load: np.exp(log_ratios[load][0]) for load in loads}
    return Estimates(lengths, speedups, ratios, errors)


def _failed(results: Results, task: str, lengths: Sequence[int]) -> list[int]:
    """The places of the draft lengths that could not answer a task at some load."""
    failed = {key.draft_length for key in results.errors if key.task == task}
    return [at for at, length in enumerate(lengths) if length in failed - {0}]


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


def mean_draws(values: Sequence[float], effect: float, rng: np.random.Generator) -> Array:
    """The mean of `values`, then NUM_DRAWS draws of it, apart as their design effect says."""
    n = len(values)
    draws = spread(weights(n, rng) @ np.array(values), n)
    return np.concatenate([draws[:1], draws[:1] + math.sqrt(effect) * (draws[1:] - draws[:1])])


def _acceptance_draws(
    results: Results, settings: Settings, task: str, rng: np.random.Generator
) -> Array | None:
    """log AL by draft length; None where nothing was drafted for the task."""
    by_prompt: dict[int, Survival] = {}
    for key, parts in results.survival.items():
        if key.task == task:
            for prompt, part in parts.items():
                total = by_prompt.setdefault(prompt, Survival())
                for j in range(MAX_POSITIONS):
                    total.steps[j] += part.steps[j]
                    total.accepted[j] += part.accepted[j]
    if not by_prompt:
        return None
    steps = np.array([part.steps for part in by_prompt.values()])
    accepted = np.array([part.accepted for part in by_prompt.values()])
    w = weights(len(by_prompt), rng)
    draws = np.log(acceptance_lengths(w @ steps, w @ accepted, settings.draft_lengths))
    return np.maximum(spread(draws, len(by_prompt)), 0.0)


def acceptance_lengths(steps: Array, accepted: Array, draft_lengths: Sequence[int]) -> Array:
    """AL at each draft length from sums by position, [n, MAX_POSITIONS] both; AL(0) is 1.

    A position that nothing reached goes on as the one before it, S_j+1 = r·S_1·S_j.
    """
    survival = np.divide(accepted, steps, out=np.zeros_like(steps), where=steps > 0)
    for j in range(1, MAX_POSITIONS):
        unseen = steps[:, j] <= 0
        guess = survival[:, j - 1] * DECAY_RATIO * survival[:, 0]
        survival[:, j] = np.where(unseen, guess, np.minimum(survival[:, j], survival[:, j - 1]))
    sums = np.concatenate([np.zeros((len(steps), 1)), np.cumsum(survival, axis=1)], axis=1)
    return np.asarray(1 + sums[:, [min(k, MAX_POSITIONS) for k in draft_lengths]])


def _ratio_draws(
    results: Results, lengths: Sequence[int], load: int, rng: np.random.Generator
) -> Array:
    """log R by draft length at one concurrency, over the pairs of all tasks; NaN where none."""
    found = np.full((NUM_DRAWS + 1, len(lengths)), np.nan)
    found[:, 0] = 0.0
    for at, length in enumerate(lengths[1:], 1):
        pairs = [
            value
            for key, values in results.ratios.items()
            if (key.draft_length, key.concurrency) == (length, load)
            for value in values
        ]
        if pairs:
            found[:, at] = mean_draws(pairs, results.effect, rng)
    return found


def _fill(log_ratios: dict[int, Array], loads: Sequence[int]) -> None:
    """Give what was not measured a value from its neighbours, and let R rise with the length.

    First between concurrencies (linear in their logarithm, flat beyond the ends), then between
    draft lengths (linear, with R(0) = 1). Noise that makes a longer draft cheaper is levelled:
    the mean of the rising curves above and below.
    """
    stack = np.stack([log_ratios[load] for load in loads])  # [loads, draws, lengths]
    x = np.log(np.array(loads, float))
    for at in range(1, stack.shape[2]):
        known = ~np.isnan(stack[:, 0, at])
        if known.any() and not known.all():
            for row in range(stack.shape[1]):
                stack[~known, row, at] = np.interp(x[~known], x[known], stack[known, row, at])
    for at in range(1, stack.shape[2]):
        if np.isnan(stack[0, 0, at]):
            stack[:, :, at] = stack[:, :, at - 1]
    above = np.maximum.accumulate(stack, axis=2)
    below = np.minimum.accumulate(stack[:, :, ::-1], axis=2)[:, :, ::-1]
    level = np.maximum((above + below) / 2, 0.0)
    for load, values in zip(loads, level, strict=True):
        log_ratios[load] = values


def _with_seen(
    predicted: Array,
    results: Results,
    lengths: Sequence[int],
    task: str,
    load: int,
    model_error: float,
    rng: np.random.Generator,
) -> Array:
    """The prediction, pulled to what the cells themselves showed by the inverse variances."""
    for at, length in enumerate(lengths):
        values = results.speedups.get(CellKey(task, length, load), [])
        if len(values) < FEWEST_PAIRS:
            continue
        own = mean_draws(values, results.effect, rng)
        share = model_error**2 / (model_error**2 + float(np.var(own[1:])))
        predicted[:, at] = share * own + (1 - share) * predicted[:, at]
    return predicted


def _prediction_errors(settings: Settings, results: Results) -> Iterator[float]:
    """log of seen over predicted speedup, each cell predicted from all others."""
    for key, values in results.speedups.items():
        if len(values) < FEWEST_PAIRS:
            continue
        length = _length_without(results, key)
        ratio = _ratio_without(settings, results, key)
        if length is not None and ratio is not None:
            yield sum(values) / len(values) - (math.log(length) - ratio)


def _length_without(results: Results, key: CellKey) -> float | None:
    """AL of a cell's task and length from the other cells; None where none taught it."""
    steps, accepted = np.zeros((1, MAX_POSITIONS)), np.zeros((1, MAX_POSITIONS))
    for other, parts in results.survival.items():
        if other.task == key.task and other != key:
            for part in parts.values():
                steps += part.steps
                accepted += part.accepted
    if steps[0, min(key.draft_length, MAX_POSITIONS) - 1] <= 0:
        return None
    return float(acceptance_lengths(steps, accepted, (key.draft_length,))[0, 0])


def _ratio_without(settings: Settings, results: Results, key: CellKey) -> float | None:
    """log R at a cell's length and concurrency from the other cells."""
    own, curve = [], []
    for load in settings.concurrencies:
        pairs = [
            value
            for other, values in results.ratios.items()
            if other != key and other[1:] == (key.draft_length, load)
            for value in values
        ]
        if pairs:
            mean = sum(pairs) / len(pairs)
            curve.append((math.log(load), mean))
            own += [mean] if load == key.concurrency else []
    if own:
        return own[0]
    if len(curve) < 2:
        return None
    xs, ys = zip(*curve, strict=True)
    return float(np.interp(math.log(key.concurrency), xs, ys))


def _model_error(errors: Sequence[float], results: Results) -> float:
    """Standard deviation of the product's error, without the noise of what was measured."""
    if len(errors) < 3:
        return 3 * SMALLEST_ERROR
    noise = [
        results.effect * float(np.var(values, ddof=1)) / len(values)
        for values in results.speedups.values()
        if len(values) >= FEWEST_PAIRS
    ]
    beyond = float(np.mean(np.square(errors))) - float(np.mean(noise))
    return math.sqrt(max(beyond, SMALLEST_ERROR**2))
