"""Predict speedups from other measurements: log speedup = log AL(task, K) - log R(rig, K, B).

Both terms are Gaussian processes around the formulas of acceptance.py and cost.py. What rows have
in common (task, rig, draft length, load, context) says how much one tells of another; reported
acceptance lengths inform the first term alone, step ratios the second, and speedups their
difference. Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapter 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.published.measurements import Measurement, StepRatio
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths

Array = NDArray[np.float64]

# First-draft acceptance by their own task names: medians, see controller/data/SOURCES.md.
TASK_ACCEPTANCE = {
    "code": 0.92,
    "math": 0.91,
    "structured/json/extraction": 0.96,
    "rag/qa-with-context": 0.90,
    "agentic/tool-calls": 0.92,
    "summarization": 0.86,
    "translation": 0.84,
    "factual-qa": 0.82,
    "chat/explain": 0.78,
    "creative/roleplay": 0.68,
}
TYPICAL_ACCEPTANCE = 0.85


@dataclass(frozen=True, slots=True)
class Scales:
    """Standard deviations (of logs) of what is not known, and how far a neighbor informs.

    Chosen by a search on two other splits (seeds 1 and 2) of tools/data/mtp_measurements.csv.
    """

    noise: float = 0.03
    # acceptance length
    task_kind: float = 0.035  # what all rows of a kind of task share
    task: float = 0.15  # a source's own task, at any rig
    task_length: float = 0.08  # how it bends with K
    rig_task: float = 0.14  # one rig's task
    model: float = 0.05
    # step ratio
    rig: float = 0.42
    rig_length: float = 0.075
    rig_load: float = 1.4
    rig_context: float = 0.075
    rig_cell: float = 0.08  # load and context together
    hardware: float = 0.05
    gate: float = 0.10
    # how far in log K, log2 load, log context a neighbor still says the same
    reach_length: float = 0.84
    reach_load: float = 1.5
    reach_context: float = 2.0


class Point(NamedTuple):
    """What a prediction or an observation is about."""

    row: Measurement
    has_acceptance: float  # 1 if log AL takes part, else 0
    has_cost: float  # -1 in a speedup, 1 in a step ratio, 0 in an acceptance length


def _codes(values: Sequence[object]) -> Array:
    index: dict[object, int] = {}
    return np.array([index.setdefault(value, len(index)) for value in values], dtype=np.float64)


def _same(codes: Array) -> Array:
    return np.asarray(codes[:, None] == codes[None, :], dtype=np.float64)


def _near(values: Array, reach: float) -> Array:
    return np.asarray(np.exp(-0.5 * ((values[:, None] - values[None, :]) / reach) ** 2))


def _covariance(points: Sequence[Point], s: Scales) -> Array:
    """The prior covariance of all points, [n, n]."""
    rows = [point.row for point in points]
    length = _near(np.log([r.draft_length for r in rows]), s.reach_length)
    load = _near(np.log2([r.concurrency for r in rows]), s.reach_load)
    context = _near(np.log([1 + r.context / 2048 for r in rows]), s.reach_context)
    task = _same(_codes([(r.source, r.task_source, r.temperature, r.thinking) for r in rows]))
    model = _same(_codes([(r.model, r.method) for r in rows]))
    kind = _same(_codes([(r.task_norm, r.thinking) for r in rows]))
    rig = _same(_codes([(r.source, r.rig, r.method) for r in rows]))
    gate = _same(_codes([(r.source, r.rig, r.gate) for r in rows]))
    hardware = _same(_codes([tuple(r.rig.split(" | ")[2:]) for r in rows]))
    acceptance = (
        s.task_kind**2 * kind
        + s.task**2 * task
        + s.task_length**2 * task * length
        + s.rig_task**2 * task * rig * length
        + s.model**2 * model * length
    )
    cost = (
        s.rig**2 * rig
        + s.rig_length**2 * rig * length
        + s.rig_load**2 * rig * load
        + s.rig_context**2 * rig * context
        + s.rig_cell**2 * rig * load * context * length
        + s.hardware**2 * hardware * length
        + s.gate**2 * gate * length
    )
    a = np.array([point.has_acceptance for point in points])
    c = np.array([point.has_cost for point in points])
    return np.asarray(np.outer(a, a) * acceptance + np.outer(c, c) * cost)


def _prior(point: Point) -> float:
    """The formulas' own answer, in logs."""
    row = point.row
    p = TASK_ACCEPTANCE.get(row.task_norm, TYPICAL_ACCEPTANCE)
    conditionals = (prior_conditionals(p) + (0.91 * p,) * row.draft_length)[: row.draft_length]
    length = float(np.log(acceptance_lengths(conditionals)[-1]))
    ratio = float(np.log(1.05 + 0.17 * row.draft_length * (1 + 0.15 * np.log2(row.concurrency))))
    return point.has_acceptance * length + point.has_cost * ratio


def predict_speedups(
    known: Sequence[Measurement],
    ratios: Sequence[StepRatio],
    asked: Sequence[Measurement],
    scales: Scales | None = None,
) -> Array:
    """The speedup expected of each row in `asked`, whose own numbers are not looked at."""
    scales = scales or Scales()
    observed, values = _observations(known, ratios)
    points = observed + [Point(row, 1.0, -1.0) for row in asked]
    covariance = _covariance(points, scales)
    prior = np.array([_prior(point) for point in points])
    n = len(observed)
    if not n:
        return np.asarray(np.exp(prior))
    within = covariance[:n, :n] + scales.noise**2 * np.eye(n)
    weights = np.linalg.solve(within, np.array(values) - prior[:n])
    return np.asarray(np.exp(prior[n:] + covariance[n:, :n] @ weights))


def _observations(
    known: Sequence[Measurement], ratios: Sequence[StepRatio]
) -> tuple[list[Point], list[float]]:
    points, values = [], []
    for row in known:
        if row.acceptance_length is not None:
            points.append(Point(row, 1.0, 0.0))
            values.append(float(np.log(row.acceptance_length)))
        if row.speedup is not None:
            points.append(Point(row, 1.0, -1.0))
            values.append(float(np.log(row.speedup)))
    for ratio in ratios:
        points.append(Point(_as_row(ratio), 0.0, 1.0))
        values.append(float(np.log(ratio.ratio)))
    return points, values


def _as_row(ratio: StepRatio) -> Measurement:
    return Measurement(
        ratio.source, ratio.model, ratio.rig, "mtp", "", "", "", "", 0.0,
        ratio.draft_length, ratio.batch, ratio.context, None, None,
    )  # fmt: skip
