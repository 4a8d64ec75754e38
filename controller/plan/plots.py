"""The two plots of a plan's page: cost over load, and speed per task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from trt_mtp.controller.plan.groups import Question
from trt_mtp.controller.plan.plan import Plan
from trt_mtp.controller.plan.program import Problem
from trt_mtp.controller.plan.sizing import least, least_scheduled, least_single
from trt_mtp.controller.report.plots import INK, MARKERS, SERIES

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # of the traffic that was planned for
UNBOUNDED = 1_000_000  # replicas


class Line(NamedTuple):
    """One kind of fleet: its cost at each factor of the traffic, None where it can't hold it."""

    name: str
    costs: tuple[float | None, ...]


def costs_over_load(plan: Plan) -> tuple[Line, ...]:
    """What the program asks for at more and less traffic, before the simulator adds its margin."""
    questions = [_scaled(plan, factor) for factor in FACTORS]
    best = plan.best_single.fleet
    lines = [Line("mix of lengths", tuple(_cost(plan, least(q)) for q in questions))]
    if best is not None:
        length = best.groups[0].mode.draft_length
        costs = tuple(_cost(plan, least_single(q, length)) for q in questions)
        lines.append(Line(f"K = {length} everywhere", costs))
    if 0 in plan.deployment.draft_lengths and (best is None or length):
        costs = tuple(_cost(plan, least_single(q, 0)) for q in questions)
        lines.append(Line("no speculation", costs))
    if plan.schedule_everywhere.fleet is not None:
        costs = tuple(_cost(plan, least_scheduled(q)) for q in questions)
        lines.append(Line("schedule everywhere", costs))
    return tuple(line for line in lines if any(cost is not None for cost in line.costs))


def _scaled(plan: Plan, factor: float) -> Question:
    traffic = {
        task: replace(one, requests_per_s=factor * one.requests_per_s)
        for task, one in plan.traffic.items()
    }
    rates = {task: one.requests_per_s for task, one in traffic.items()}
    problem = Problem(rates, UNBOUNDED, plan.wishes.spare)
    return Question(plan.deployment, traffic, plan.wishes.targets, problem, plan.wishes.seed)


def _cost(plan: Plan, replicas: float) -> float | None:
    if replicas > UNBOUNDED:
        return None
    return replicas * plan.deployment.gpus_per_replica * plan.wishes.gpu_cost


def cost_over_load(axes: Any, plan: Plan, lines: Sequence[Line]) -> None:
    """A line for each kind of fleet, and this plan as a point."""
    for i, line in enumerate(lines):
        known = [(f, c) for f, c in zip(FACTORS, line.costs, strict=True) if c is not None]
        color, marker = SERIES[(i + 1) % len(SERIES)], MARKERS[i + 1]
        xs, ys = zip(*known, strict=True)
        axes.plot(xs, ys, color=color, marker=marker, lw=1.5, ms=4, label=line.name)
    axes.plot([1], [plan.cost], "*", color=INK, ms=12, zorder=4, label="this plan")
    limit = plan.wishes.gpus * plan.wishes.gpu_cost
    highest = max(cost for line in lines for cost in line.costs if cost is not None)
    if limit < highest:
        axes.axhline(limit, color=INK, lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="times the traffic planned for", ylabel="cost", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def speed_per_task(axes: Any, plan: Plan) -> None:
    """A bar from the median to the 99th percentile of TPOT for each task, and the target."""
    tasks = list(plan.tasks)[::-1]
    for i, task in enumerate(tasks):
        tpot = plan.tasks[task][0]
        axes.plot([tpot.p50, tpot.p99], [i, i], color=SERIES[1], lw=3, solid_capstyle="round")
        axes.plot([tpot.p50], [i], "o", color=SERIES[1], ms=6)
        axes.plot([tpot.p99], [i], "s", color=SERIES[2], ms=6)
    target = plan.wishes.targets.tpot_ms
    if target is not None:
        axes.axvline(target, color=INK, lw=1, ls=(0, (4, 3)))
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set(xlabel="ms per token: median, 99th percentile", xlim=(0, None))
    axes.set_ylim(-0.6, len(tasks) - 0.4)
