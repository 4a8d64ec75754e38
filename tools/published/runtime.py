"""Predict speedups as the gateway does: one p for each task and a table of R for each rig.

AL is that of controller/acceptance.py without counts, R that of controller/cost.py. They are fitted
to the known rows in turn: R of a cell is the mean over its rows, p the one on a grid that fits a
task's rows best, drawn to its prior.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tools.published.measurements import Measurement, StepRatio
from tools.published.prediction import TASK_ACCEPTANCE, TYPICAL_ACCEPTANCE
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.controller.profile import Profile

ROUNDS = 4
GRID = tuple(float(p) for p in np.linspace(0.3, 0.995, 140))
PRIOR_SD, ROW_SD = 0.08, 0.05  # of p around its task's median, and of a row's logarithm

Task = tuple[object, ...]
Rig = tuple[object, ...]
Acceptance = Mapping[Task, float]
Costs = Mapping[Rig, StepCost]


def predict_speedups(
    known: Sequence[Measurement], ratios: Sequence[StepRatio], asked: Sequence[Measurement]
) -> NDArray[np.float64]:
    """The speedup expected of each row in `asked`, whose own numbers are not looked at."""
    acceptance = {_task(row): _prior(row) for row in (*known, *asked)}
    costs = _costs(known, acceptance, ratios)
    for _ in range(ROUNDS):
        acceptance |= _fitted(known, costs)
        costs = _costs(known, acceptance, ratios)
    logs = [_log_length(acceptance[_task(r)], r.draft_length) - _log_ratio(costs, r) for r in asked]
    return np.asarray(np.exp(np.array(logs)))


@cache
def _log_length(p: float, draft_length: int) -> float:
    """log AL(K) of a task without counts."""
    return math.log(acceptance_lengths(prior_conditionals(p))[min(draft_length, MAX_POSITIONS)])


def _task(row: Measurement) -> Task:
    """What has an acceptance of its own."""
    return row.source, row.task_source, row.temperature, row.thinking


def _rig(row: Measurement) -> Rig:
    """What has a table of R of its own."""
    return row.source, row.rig, row.method


def _prior(row: Measurement) -> float:
    return TASK_ACCEPTANCE.get(row.task_norm, TYPICAL_ACCEPTANCE)


def _costs(
    known: Sequence[Measurement], acceptance: Acceptance, ratios: Sequence[StepRatio]
) -> Costs:
    """Each rig's table: the mean of AL / speedup in each of its cells, and published ratios."""
    logs: dict[Rig, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in known:
        if row.speedup is not None:
            length = _log_length(acceptance[_task(row)], row.draft_length)
            at = row.draft_length, row.concurrency
            logs[_rig(row)][at].append(length - math.log(row.speedup))
    for ratio in ratios:
        rig = ratio.source, ratio.rig, "mtp"
        logs[rig][ratio.draft_length, ratio.batch].append(math.log(ratio.ratio))
    return {rig: _table(cells) for rig, cells in logs.items()}


def _table(cells: Mapping[tuple[int, int], Sequence[float]]) -> StepCost:
    curves: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (length, batch), values in sorted(cells.items()):
        curves[length].append((batch, math.exp(sum(values) / len(values))))
    return StepCost(((1, 1.0),), {length: tuple(curve) for length, curve in curves.items()})


def _log_ratio(costs: Costs, row: Measurement) -> float:
    cost = costs.get(_rig(row)) or _composite()
    return math.log(cost.ratio(row.draft_length, row.concurrency))


@cache
def _composite() -> StepCost:
    """The table of who has none."""
    return Profile().step_cost()


def _fitted(known: Sequence[Measurement], costs: Costs) -> dict[Task, float]:
    """The p of each task that says its acceptance lengths and speedups best."""
    wanted: dict[Task, list[tuple[int, float]]] = defaultdict(list)
    center = {_task(row): _prior(row) for row in known}
    for row in known:
        wanted[_task(row)] += [(row.draft_length, at) for at in _log_lengths(row, costs)]
    return {task: _best_p(points, center[task]) for task, points in wanted.items()}


def _log_lengths(row: Measurement, costs: Costs) -> Iterator[float]:
    """What a row says of its acceptance length."""
    if row.acceptance_length is not None:
        yield math.log(row.acceptance_length)
    if row.speedup is not None:
        yield math.log(row.speedup) + _log_ratio(costs, row)


def _best_p(points: Sequence[tuple[int, float]], center: float) -> float:
    def misfit(p: float) -> float:
        squares = sum((_log_length(p, k) - at) ** 2 for k, at in points)
        return squares / ROW_SD**2 + ((p - center) / PRIOR_SD) ** 2

    return min(GRID, key=misfit)
