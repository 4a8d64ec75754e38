"""Estimates for all cells from measured ones: log speedup = log AL(task, K) - log R(task, K, B).

AL is one of the two factors: it belongs to the task, whatever the load. Its uncertainty is a
Bayesian bootstrap (Rubin, "The Bayesian bootstrap", Annals of Statistics 9, 1981) over prompts. R
is the other: it belongs to the load, and to the task as far as measuring has shown
(step_costs.py).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trt_mtp.controller.acceptance import DECAY_RATIO
from trt_mtp.controller.calibrate.direct import measured_speedups
from trt_mtp.controller.calibrate.draws import FAILED, NUM_DRAWS, Array, spread, weights
from trt_mtp.controller.calibrate.results import Batch, Results, Settings, Survival
from trt_mtp.controller.calibrate.step_costs import Noise, step_costs
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.position_counts import MAX_POSITIONS


class OpenChoice(NamedTuple):
    """A task and concurrency whose best draft length is not settled, with its possible loss."""

    loss: float  # what the likeliest length may cost against another (95%), as a logarithm
    task: str
    concurrency: int
    lengths: tuple[int, ...]  # the likeliest, and those that may be better by more than allowed
    closest: tuple[int, ...]  # the likeliest, and the one that may be better by most


@dataclass(frozen=True, slots=True)
class Estimates:
    """The estimates of every task at every draft length and concurrency."""

    draft_lengths: tuple[int, ...]
    # logs by task and concurrency, [1 + NUM_DRAWS, num_lengths]: the estimate, then the draws
    speedups: dict[tuple[str, int], Array]
    acceptance: dict[str, Array]  # log AL by task, in the same draws
    ratios: dict[int, Array]  # R by draft length, of each concurrency; rises with the length
    costs: dict[tuple[str, int], Array]  # log R of each task and concurrency, in the same draws
    noise: Mapping[int, Noise]  # by concurrency

    def open_choices(self, allowed_loss: float) -> Iterator[OpenChoice]:
        """The choices that may lose more than `allowed_loss`."""
        for (task, load), draws in self.speedups.items():
            best = int(np.argmax(draws[0]))
            losses = likely_losses(draws, best)
            rival = int(np.argmax(losses))
            if losses[rival] > allowed_loss:
                in_question = [best, *np.flatnonzero(losses > allowed_loss)]
                lengths = tuple(sorted(self.draft_lengths[at] for at in in_question))
                closest = sorted(self.draft_lengths[at] for at in (best, rival))
                yield OpenChoice(float(losses[rival]), task, load, lengths, tuple(closest))


def likely_losses(draws: Array, chosen: int) -> Array:
    """The log loss (95%) of the length at `chosen` against each other length."""
    losses = np.quantile(draws[1:] - draws[1:, chosen : chosen + 1], 0.975, axis=0)
    losses[chosen] = 0.0
    return np.asarray(np.maximum(losses, 0.0))


def estimate(settings: Settings, results: Results, *, of_prompts: bool = False) -> Estimates:
    """Both factors and their product for all measured tasks; the product alone where none is told.

    With `of_prompts` the prompt set is all there is: acceptance is known where all of a task's
    prompts were answered. Else they are a sample of what will be asked.
    """
    rng = np.random.default_rng(settings.seed)
    if results.is_untold:
        measured = measured_speedups(settings, results, rng)
        return Estimates(settings.draft_lengths, measured, {}, {}, {}, {})
    acceptance = {}
    for task, num_prompts in settings.num_prompts:
        drawn = _acceptance_draws(results, settings, task, rng)
        if drawn is not None:
            draws, num_asked = drawn
            if of_prompts:
                draws = draws[:1] + math.sqrt(1 - num_asked / num_prompts) * (draws - draws[:1])
            draws[:, _failed(results, task, settings.draft_lengths)] = FAILED
            acceptance[task] = draws
    lengths, loads = settings.draft_lengths, settings.concurrencies
    return combined(acceptance, results.batches, lengths, loads, rng, settings.prior)


def combined(
    acceptance: dict[str, Array],
    batches: Sequence[Batch],
    lengths: tuple[int, ...],
    loads: Sequence[int],
    rng: np.random.Generator,
    prior: StepCost | None = None,
) -> Estimates:
    """log AL of each task, [1 + NUM_DRAWS, lengths], over the R that `batches` tell, at `loads`.

    `prior` is what is known of R beforehand.
    """
    if not batches:
        return Estimates(lengths, {}, {}, {}, {}, {})
    costs = step_costs(batches, lengths, loads, NUM_DRAWS, rng, prior)
    by_cell = {
        (task, load): _rising(
            costs.by_load[load] + costs.by_cell.get((task, load), costs.by_chance[load])
        )
        for task in acceptance
        for load in loads
    }
    speedups = {cell: acceptance[cell[0]] - draws for cell, draws in by_cell.items()}
    ratios = {load: np.exp(_rising(costs.by_load[load])[0]) for load in loads}
    return Estimates(lengths, speedups, acceptance, ratios, by_cell, costs.noise)


def _failed(results: Results, task: str, lengths: Sequence[int]) -> list[int]:
    """The indexes of the draft lengths that failed a task at some load."""
    failed = {key.draft_length for key in results.errors if key.task == task}
    return [at for at, length in enumerate(lengths) if length in failed - {0}]


def _acceptance_draws(
    results: Results, settings: Settings, task: str, rng: np.random.Generator
) -> tuple[Array, int] | None:
    """log AL by draft length and of how many prompts; None if nothing was drafted.

    It is the mean over prompts, as that of a cell's speedups is.
    """
    by_prompt: dict[int, Survival] = defaultdict(Survival)
    for key, parts in results.survival.items():
        if key.task == task:
            for prompt, part in parts.items():
                by_prompt[prompt].join(part)
    if not by_prompt:
        return None
    lengths = _prompt_lengths(by_prompt.values(), settings.draft_lengths)
    draws = weights(len(by_prompt), rng) @ np.log(lengths)
    return np.maximum(spread(draws, len(by_prompt)), 0.0), len(by_prompt)


def _prompt_lengths(parts: Iterable[Survival], draft_lengths: Sequence[int]) -> Array:
    """AL at each draft length of each prompt."""
    own = list(parts)
    steps, accepted = np.array([p.steps for p in own]), np.array([p.accepted for p in own])
    return acceptance_lengths(steps, accepted, draft_lengths)


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


def _rising(log_ratios: Array) -> Array:
    """log R that rises with the draft length, from 0 on.

    Noise that makes a longer draft cheaper is levelled: the mean of the rising curves above and
    below.
    """
    above = np.maximum.accumulate(log_ratios, axis=1)
    below = np.minimum.accumulate(log_ratios[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.maximum((above + below) / 2, 0.0))
