"""A plan as one page: the advice, two plots, and every number behind them."""

from functools import partial
from pathlib import Path
from typing import Any

from trt_mtp.controller.plan import plots
from trt_mtp.controller.plan.plan import Plan
from trt_mtp.controller.plan.text import outlook, reason
from trt_mtp.controller.report.svg import svg
from trt_mtp.controller.report.tables import NONE, Table, number

TEMPLATES = Path(__file__).parents[1] / "data"
WIDE = (5.2, 3.2)  # inches


def html(plan: Plan) -> str:
    """The page; everything it needs is in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("plan.html.jinja").render(_content(plan))


def _content(plan: Plan) -> dict[str, Any]:
    lines = plots.costs_over_load(plan)
    costs, tasks = _costs(lines), _tasks(plan)
    deployment = plan.deployment
    gpus = plan.fleet.num_replicas * deployment.gpus_per_replica
    text = reason(plan)
    return {
        "headline": f"{gpus} of {deployment.machine} for {deployment.name}.",
        "reason": f"{text[0].upper()}{text[1:]}.",
        "outlook": list(outlook(plan)),
        "replicas": _replicas(plan),
        "cost_plot": svg(
            partial(plots.cost_over_load, plan=plan, lines=lines), "cost", _said(costs), WIDE
        ),
        "costs": costs,
        "speed_plot": svg(
            partial(plots.speed_per_task, plan=plan), "speed", _said(tasks),
            (WIDE[0], 0.8 + 0.28 * len(plan.tasks)),
        ),
        "tasks": tasks,
        "target": plan.wishes.targets.tpot_ms,
    }  # fmt: skip


def _replicas(plan: Plan) -> Table:
    head = ("draft length", "replicas", "held at batch", "requests a second", "tasks")
    lines = tuple(
        (
            group.mode.name, str(group.count), str(group.mode.batch),
            number(sum(group.flow.values())), ", ".join(group.flow).replace("_", " "),
        )
        for group in plan.fleet.groups
    )  # fmt: skip
    return Table(head, lines)


def _costs(lines: tuple[plots.Line, ...]) -> Table:
    head = ("fleet", *(f"{factor:g}×" for factor in plots.FACTORS))
    rows = tuple(
        (line.name, *(NONE if cost is None else f"{cost:g}" for cost in line.costs))
        for line in lines
    )
    return Table(head, rows)


def _tasks(plan: Plan) -> Table:
    head = ("task", "requests a second", "TPOT p50, ms", "p99", "TTFT p50, ms", "p99 of TTFT")
    lines = tuple(
        (
            task, number(plan.traffic[task].requests_per_s), number(tpot.p50), number(tpot.p99),
            number(ttft.p50), number(ttft.p99),
        )
        for task, (tpot, ttft) in plan.tasks.items()
    )  # fmt: skip
    return Table(head, lines)


def _said(table: Table) -> str:
    """A table as a screen reader says it."""
    said = []
    for line in table.lines:
        pairs = zip(table.head[1:], line[1:], strict=True)
        said.append(f"{line[0]}: " + ", ".join(f"{what} {value}" for what, value in pairs))
    return "; ".join(said)
