"""Which block tells most of the choices that are open, for each second that it takes.

What is unsure of all cells is in the draws of an estimate; so their covariances say how far a
block's answers would narrow every open comparison of two lengths, in its own cell and elsewhere: a
step of a Kalman filter with the draws as the ensemble (Evensen, Ocean Dynamics 53, 2003).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from trt_mtp.controller.calibrate.draws import Array
from trt_mtp.controller.calibrate.fit import Estimates, OpenChoice

QUANTILE = 1.96  # standard deviations that a possible loss lies above the expected one


class Candidate(NamedTuple):
    """A block that could be asked."""

    task: str
    concurrency: int
    lengths: tuple[int, ...]  # without 0
    num_prompts: int
    seconds: float
    is_known: float  # share of the variance of its task's acceptance that is gone afterwards


class _Comparisons(NamedTuple):
    """The pairs of a likeliest length and one that may be better by more than is allowed."""

    tasks: list[str]
    draws: Array  # [draws, n], centered: log of the rival's speedup over the likeliest one's
    acceptance: Array  # [n], variance of its part that is acceptance
    excess: Array  # [n], by how much the possible loss is above the allowed one


def most_telling(
    estimates: Estimates,
    choices: Iterable[OpenChoice],
    candidates: Iterable[Candidate],
    allowed_loss: float,
) -> Candidate | None:
    """The candidate that brings possible losses down most per second; None without candidates."""
    known = _comparisons(estimates, choices, allowed_loss)
    return max(candidates, key=lambda one: _gain(estimates, known, one) / one.seconds, default=None)


def _comparisons(
    estimates: Estimates, choices: Iterable[OpenChoice], allowed_loss: float
) -> _Comparisons:
    tasks, draws, acceptance, excess = [], [], [], []
    for choice in choices:
        cell = estimates.speedups[choice.task, choice.concurrency]
        best = int(np.argmax(cell[0]))
        for rival in map(estimates.draft_lengths.index, choice.lengths):
            if rival != best:
                one, own = cell[1:, rival] - cell[1:, best], estimates.acceptance[choice.task][1:]
                tasks.append(choice.task)
                draws.append(one - one.mean())
                acceptance.append(np.var(own[:, rival] - own[:, best]))
                excess.append(float(np.quantile(one, 0.975)) - allowed_loss)
    return _Comparisons(tasks, np.array(draws).T, np.array(acceptance), np.array(excess))


def _gain(estimates: Estimates, known: _Comparisons, candidate: Candidate) -> float:
    """By how much the possible losses shrink in all, down to what is allowed."""
    places = [estimates.draft_lengths.index(length) for length in candidate.lengths]
    costs = estimates.costs[candidate.task, candidate.concurrency][1:, places]
    costs = costs - costs.mean(axis=0)
    arms = np.eye(len(places)) + 1  # the arm without speculation is in all ratios
    noise = estimates.noise[candidate.concurrency].variance(candidate.num_prompts)
    seen = costs.T @ costs / len(costs) + noise * arms
    both = known.draws.T @ costs / len(costs)
    told = np.einsum("ci,ci->c", both, np.linalg.solve(seen, both.T).T)
    own = np.array([task == candidate.task for task in known.tasks])
    told = told + candidate.is_known * known.acceptance * own
    variance = known.draws.var(axis=0)
    left = np.sqrt(np.maximum(variance - told, 0.0))
    return float(np.minimum(QUANTILE * (np.sqrt(variance) - left), known.excess).sum())
