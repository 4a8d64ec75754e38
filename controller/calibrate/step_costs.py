"""The cost of a step by draft length, load and task, from few batches of answers.

A mixed model of what a batch's steps took, at each load:

    log of the time per step = pace + m(K) + u(task, K) + noise

The pace is what the draft lengths of one block share (its prompts, how busy the machine was then),
so that only differences within a block count. m is log R, and u by how much a task differs from
it: where u is 0, speedup = AL / R exactly. How large u is (from the lowest load to the highest by a
power of the load), and how large the noise (of each load, around one of all), is told by their
likelihood (Searle, Casella and McCulloch, "Variance Components", 1992); draws are over what is
likely of both. So a cell's own batches count as much as they differ less among themselves than
tasks do, and a cell without any has the spread of tasks as its uncertainty.

R lies between 1, where checking drafts is free, and K + 1, where it is no better than plain steps.
A Gaussian process over length and load, the one that a gateway learns with (cost_posterior.py),
says no more than that, and that neighbors are alike: it fills in what was not measured, and is the
less sure the farther off that is. A table of step costs, such as a roofline's, says where R lies to
begin with.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trt_mtp.controller.calibrate.results import Batch
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.cost_posterior import NUM_BATCHES, prior_covariance, weights
from trt_mtp.controller.position_counts import MAX_POSITIONS

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
SPREADS = np.geomspace(0.002, 0.3, 12)  # of u
NOISES = np.geomspace(0.002, 0.4, 14)  # of a batch, beyond that of its answers
TYPICAL_SPREAD = 0.02  # of a half-Cauchy prior: AL / R holds unless the numbers say otherwise
NOISE_VARIES = 0.7  # between loads, as the standard deviation of a logarithm
TYPICAL_ANSWER_NOISE = 0.05  # where no batch has two answers
COST_VARIES = 0.3  # of log R, as a share of log(K + 1), around a half of it
ROUGHNESS = 0.02  # of log R, as a share of log(K + 1): what no neighbor says
WIDEST = 1.0  # of m, where only spread and noise are asked for
NUM_LIKELY = 20  # noises and spreads that draws come from


class Noise(NamedTuple):
    """Variances of the log of step times: of a batch as a whole, and of each answer in it."""

    batch: float
    answer: float

    def variance(self, num_prompts: int) -> float:
        """The variance of one arm's mean."""
        return self.batch + self.answer / num_prompts


@dataclass(frozen=True, slots=True)
class StepCosts:
    """log R by draft length, 0 first: the estimate in row 0, then draws."""

    noise: Mapping[int, Noise]  # by load
    by_load: Mapping[int, Array]
    by_cell: Mapping[tuple[str, int], Array]  # what a task has beyond that where it was measured
    by_chance: Mapping[int, Array]  # what a task may have beyond it where it was not


class _Group(NamedTuple):
    """The batches of one task at one load."""

    task: str
    load: int
    batches: list[Batch]


class _Evidence(NamedTuple):
    """What each group says of its m + u, for each size of the noise in NOISES or for one."""

    precision: Array  # [..., groups, K, K]
    weighted: Array  # [..., groups, K], precision times mean
    misfit: Array  # [..., groups], -2 log likelihood that depends on neither


def step_costs(
    batches: Sequence[Batch],
    lengths: Sequence[int],
    loads: Sequence[int],
    num_draws: int,
    rng: np.random.Generator,
    table: StepCost | None = None,
) -> StepCosts:
    """The costs at all `loads`, which ascend; `lengths` begin with 0.

    R is expected to be near `table`'s, as near as its `ratio_deviation` says; without one, half way
    between 1 and K + 1.
    """
    by_cell: dict[tuple[int, str], list[Batch]] = defaultdict(list)
    for batch in batches:
        by_cell[batch.concurrency, batch.task].append(batch)
    groups = [_Group(task, load, part) for (load, task), part in sorted(by_cell.items())]
    place = np.array([loads.index(group.load) for group in groups])
    answer_noise = {load: _answer_noise([g for g in groups if g.load == load]) for load in loads}
    evidence = _evidence(groups, lengths, answer_noise)
    prior = _prior_of_costs(lengths, loads, table)
    likely = list(_likely(evidence, place, loads, rng))
    drawn = [
        _draw(
            _of_loads(evidence, noises, place), place, spreads, prior, num_draws // NUM_LIKELY, rng
        )
        for noises, spreads in likely
    ]
    variances = np.mean([NOISES[noises] ** 2 for noises, _ in likely], axis=0)
    by_load, by_group, spread = (_joined(part) for part in zip(*drawn, strict=True))
    return StepCosts(
        {b: Noise(float(variances[n]), answer_noise[b] / 2) for n, b in enumerate(loads)},
        {load: _with_none(by_load[:, at]) for at, load in enumerate(loads)},
        {(g.task, g.load): _with_none(by_group[:, at]) for at, g in enumerate(groups)},
        {load: _with_none(spread[:, at]) for at, load in enumerate(loads)},
    )


def _answer_noise(groups: Sequence[_Group]) -> float:
    """Variance of one pair's log ratio within its batch, pooled over a load."""
    squares, free = 0.0, 0
    for values in (v for g in groups for b in g.batches for v in b.ratios.values()):
        mean = math.fsum(values) / len(values)
        squares += math.fsum((value - mean) ** 2 for value in values)
        free += len(values) - 1
    return squares / free if free else 2 * TYPICAL_ANSWER_NOISE**2


def _evidence(
    groups: Sequence[_Group], lengths: Sequence[int], answer_noise: Mapping[int, float]
) -> _Evidence:
    """A block's ratios share the arm without speculation: their covariance is v (I + J)."""
    size, num_noises = len(lengths) - 1, len(NOISES)
    precision = np.zeros((num_noises, len(groups), size, size))
    weighted = np.zeros((num_noises, len(groups), size))
    misfit = np.zeros((num_noises, len(groups)))
    for at, group in enumerate(groups):
        for batch in group.batches:
            places = np.array([lengths.index(length) - 1 for length in batch.ratios])
            means = np.array([math.fsum(v) / len(v) for v in batch.ratios.values()])
            num_pairs = min(len(values) for values in batch.ratios.values())
            variances = NOISES**2 + answer_noise[group.load] / (2 * num_pairs)
            inverse = np.eye(len(places)) - 1 / (len(places) + 1)
            precision[:, at, places[:, None], places] += inverse / variances[:, None, None]
            weighted[:, at, places] += inverse @ means / variances[:, None]
            misfit[:, at] += means @ inverse @ means / variances
            misfit[:, at] += len(places) * np.log(variances)
    return _Evidence(precision, weighted, misfit)


def _prior_of_costs(
    lengths: Sequence[int], loads: Sequence[int], table: StepCost | None
) -> tuple[Array, Array]:
    """Mean and covariance of m, [loads · K]: what a gateway knows of an error of R, too."""
    most = np.tile(np.log(np.array(lengths[1:], float) + 1), len(loads))
    contrasts = np.zeros((len(most), (MAX_POSITIONS + 1) * NUM_BATCHES))
    cells = list(itertools.product(loads, lengths[1:]))
    for row, (load, length) in enumerate(cells):
        for place, share in weights(length, load):
            contrasts[row, place] += share
        for place, share in weights(0, load):
            contrasts[row, place] -= share
    deviation = table.ratio_deviation if table else COST_VARIES * math.log(4)  # of log R(3, B)
    shared = contrasts @ prior_covariance(deviation) @ contrasts.T
    mean = np.log([table.ratio(k, b) for b, k in cells]) if table else most / 2
    return mean, shared + np.diag((ROUGHNESS * most) ** 2)


def _likely(
    evidence: _Evidence, place: Places, loads: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[Places, Array]]:
    """Draws of the noise's place in NOISES and of the spread, each by load."""
    by_noise = _Evidence(*(part[:, None] for part in evidence))
    scores = _score(by_noise, place, np.tile(SPREADS[:, None], len(loads)))
    lowest, highest = np.indices((len(SPREADS), len(SPREADS)))[..., None]
    x = np.log(np.array(loads) / loads[0]) / (math.log(loads[-1] / loads[0]) or 1.0)
    between = lowest + (highest - lowest) * x  # places in SPREADS, [lowest, highest, loads]
    floor = np.minimum(between.astype(int), len(SPREADS) - 2)
    low, high = (scores[:, at, np.arange(len(loads))] for at in (floor, floor + 1))
    scores = low + (high - low) * (between - floor)
    likelihood = np.exp((scores.min(axis=(0, 1, 2)) - scores) / 2)
    apart = np.subtract.outer(np.log(NOISES), np.log(NOISES)) / NOISE_VARIES
    around = np.exp(-(apart**2) / 2)  # [of all loads, of one]
    around /= around.sum(axis=1, keepdims=True)
    total = np.log(np.einsum("on,nshl->oshl", around, likelihood)).sum(axis=-1)
    prior = SPREADS / (1 + (SPREADS / TYPICAL_SPREAD) ** 2)  # the grid is even in the logarithm
    shares = np.exp(total - total.max()) * prior[:, None] * prior
    for chosen in rng.choice(shares.size, NUM_LIKELY, p=(shares / shares.sum()).ravel()):
        overall, *ends = np.unravel_index(chosen, shares.shape)
        by_load = around[overall][:, None] * likelihood[:, *ends]
        noises = [rng.choice(len(NOISES), p=column / column.sum()) for column in by_load.T]
        spreads = np.exp(np.interp(between[*ends], range(len(SPREADS)), np.log(SPREADS)))
        yield np.array(noises), spreads


def _of_loads(evidence: _Evidence, noises: Places, place: Places) -> _Evidence:
    """The evidence with each load's own noise; `noises` are places in NOISES."""
    groups = np.arange(len(place))
    return _Evidence(*(part[noises[place], groups] for part in evidence))


class _Pooled(NamedTuple):
    """Evidence with u integrated out, for its spreads by load."""

    task_covariance: Array  # [..., groups, K, K], of u given m
    shrink: Array  # [..., groups, K, K]
    precision: Array  # [..., loads, K, K], of m
    weighted: Array  # [..., loads, K]


def _pool(evidence: _Evidence, place: Places, spreads: Array) -> _Pooled:
    """`spreads` are by load, [..., loads]."""
    size = evidence.weighted.shape[-1]
    prior = _covariance(spreads, size)[..., place, :, :]
    shrink = np.linalg.inv(np.eye(size) + prior @ evidence.precision)
    at_load = (np.arange(spreads.shape[-1])[:, None] == place).astype(float)  # [loads, groups]
    precision = np.einsum("lg,...gij->...lij", at_load, evidence.precision @ shrink)
    own = np.einsum("...gji,...gj->...gi", shrink, evidence.weighted)
    return _Pooled(shrink @ prior, shrink, precision, at_load @ own)


def _covariance(spreads: Array, size: int) -> Array:
    """Of u: that of draft length 0 differs by task as well, and is in all ratios."""
    return np.asarray(np.square(spreads)[..., None, None] * (np.eye(size) + 1))


def _score(evidence: _Evidence, place: Places, spreads: Array) -> Array:
    """-2 log of each load's marginal likelihood but for a constant, [..., loads]."""
    pooled = _pool(evidence, place, spreads)
    precision = pooled.precision + np.eye(pooled.weighted.shape[-1]) / WIDEST**2
    mean = np.linalg.solve(precision, pooled.weighted[..., None])[..., 0]
    by_group = evidence.misfit - np.linalg.slogdet(pooled.shrink)[1]
    by_group = by_group - np.einsum(
        "...gi,...gij,...gj->...g", evidence.weighted, pooled.task_covariance, evidence.weighted
    )
    at_load = (np.arange(spreads.shape[-1]) == place[:, None]).astype(float)  # [groups, loads]
    by_load = np.linalg.slogdet(precision)[1] - (mean * pooled.weighted).sum(axis=-1)
    return np.asarray(by_load + by_group @ at_load)


def _draw(
    evidence: _Evidence,
    place: Places,
    spreads: Array,
    prior: tuple[Array, Array],
    num_draws: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:
    """m by load, u by group, and u of a task without batches by load: the mean, then draws."""
    pooled = _pool(evidence, place, spreads)
    num_loads, size = pooled.weighted.shape
    before = np.linalg.inv(prior[1])
    precision = before.copy()
    for at in range(num_loads):
        own = slice(at * size, (at + 1) * size)
        precision[own, own] += pooled.precision[at]
    covariance = np.linalg.inv(precision)
    mean = covariance @ (before @ prior[0] + pooled.weighted.ravel())
    drawn = mean + _normal(covariance[None], num_draws, rng)[:, 0]
    by_load = drawn.reshape(-1, num_loads, size)
    left = evidence.weighted - np.einsum("gij,rgj->rgi", evidence.precision, by_load[:, place])
    by_group = np.einsum("gij,rgj->rgi", pooled.task_covariance, left)
    by_group += _normal(pooled.task_covariance, num_draws, rng)
    return by_load, by_group, _normal(_covariance(spreads, size), num_draws, rng)


def _normal(covariances: Array, num_draws: int, rng: np.random.Generator) -> Array:
    """Zeros, then draws around zero, [1 + draws, …, K]."""
    values, vectors = np.linalg.eigh((covariances + covariances.swapaxes(-1, -2)) / 2)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    noise = rng.normal(size=(num_draws, *roots.shape[:-1]))
    draws = np.einsum("gij,rgj->rgi", roots, noise)
    return np.concatenate([np.zeros((1, *draws.shape[1:])), draws])


def _joined(parts: Sequence[Array]) -> Array:
    """One set of rows of several: the mean of their first rows, then all their draws."""
    first = np.mean([part[0] for part in parts], axis=0)
    return np.concatenate([first[None], *(part[1:] for part in parts)])


def _with_none(draws: Array) -> Array:
    """With the column of draft length 0, whose log R is 0."""
    return np.concatenate([np.zeros((len(draws), 1)), draws], axis=1)
