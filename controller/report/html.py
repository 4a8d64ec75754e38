"""The report as one page: sections of plots, each with its numbers, through a jinja2 template."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.controller.profile_text import conclusion, is_decided
from trt_mtp.controller.report import plots
from trt_mtp.controller.report import replay as report_replay
from trt_mtp.controller.report import tables as report_tables
from trt_mtp.controller.report import text as report_text
from trt_mtp.controller.report.compare import comparison
from trt_mtp.controller.report.report import Calibrated, Replay, Report
from trt_mtp.controller.report.summary import Summary
from trt_mtp.controller.report.svg import Draw, marker_svg, png, svg
from trt_mtp.controller.report.tables import Table
from trt_mtp.controller.report.wishes import Wishes, wished
from trt_mtp.errors import InputError

TEMPLATES = Path(__file__).parents[1] / "data"
PANEL_SIZE = (3.5, 2.35)  # inches, of 96 px in the page


class Section(NamedTuple):
    """A group of plots: `panels` and `key` (of the draft lengths) are (title, svg)."""

    title: str
    intro: str
    key: tuple[tuple[str, str], ...]
    panels: tuple[tuple[str, str], ...]
    table: Table


class TaskPlot(NamedTuple):
    """A plot that there is one of for each task."""

    name: str  # short, for ids
    title: str
    intro: str
    key_from: int | None  # the shallowest length that its key names
    draw: Callable[..., None]  # of axes, summary, task and looks
    table: Callable[[Summary], Table]


TASK_PLOTS = (
    TaskPlot(
        "length",
        "Speedup by draft length",
        "At the lowest load. Above the dashed line drafting wins, below it loses; the shaded "
        "length is the one to use. Points are of each cell's own answers, bars their 95% "
        "intervals; what leaves the plot is in the table.",
        None,
        plots.speedup_by_length,
        report_tables.speedups_by_length,
    ),
    TaskPlot(
        "load",
        "Speedup by load",
        "What each length gains with more requests at a time. A cross marks where it stops "
        "winning: beyond, it loses. Points are of each cell's own answers, crosses of all.",
        1,
        plots.speedup_by_load,
        report_tables.speedups_by_load,
    ),
    TaskPlot(
        "acceptance",
        "Acceptance by position",
        "How often the first drafts were all right up to each position. It is a matter of the "
        "task and the model, not of the load.",
        None,
        plots.acceptance_by_position,
        report_tables.acceptance_by_position,
    ),
    TaskPlot(
        "pareto",
        "Latency and throughput",
        "A point is one load of one length. To the left each user waits less for a token, upwards "
        "the server does more; the grey band joins the points that no other beats in both.",
        0,
        plots.latency_and_throughput,
        report_tables.latency_and_throughput,
    ),
)


def html(report: Report) -> str:
    """The page; everything it needs is in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.jinja").render(
        profiles=[_profile(one, f"p{i}", report.wishes) for i, one in enumerate(report.profiles)],
        replays=[_replay(one, f"r{i}") for i, one in enumerate(report.replays)],
        comparison=comparison(report.profiles) if len(report.profiles) > 1 else None,
        terms=report_text.TERMS,
    )


def _profile(one: Calibrated, name: str, wishes: Wishes) -> dict[str, Any]:
    summary = one.summary
    looks = plots.styles([row.key.draft_length for row in summary.rows])
    return {
        "id": name,
        "name": one.name,
        "facts": report_text.facts(one.profile, summary),
        "verdict": conclusion(one.calibration),
        "is_open": not is_decided(one.calibration),
        "next": report_text.next_step(summary, one.name),
        "headline": report_text.headline(summary),
        "wishes": list(wished(summary, wishes)),
        "hosting": report_text.hosting(summary),
        "coverage": report_text.coverage(summary),
        "certainty": report_text.certainty(summary),
        "basis": report_text.BASIS,
        "choices": _choices(summary, looks),
        "advice": report_tables.advice(summary),
        "loads": summary.concurrencies,
        "task_words": report_text.TASK_WORDS,
        "tasks": report_tables.tasks(summary),
        "sections": [*_sections(summary, looks, name), *_prediction(summary, looks, name)],
        "cells": report_tables.all_cells(summary),
        "environment": report_tables.environment(one.profile, one.calibration),
    }


def _choices(summary: Summary, looks: Mapping[int, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each task, what to use at each load, with the number of the length's color."""
    colors = {length: plots.SERIES.index(color) for length, (color, _) in looks.items()}
    lines = []
    for row in summary.tasks:
        line = []
        for load in summary.concurrencies:
            best = summary.best(row.task, load)
            measured = best is None or report_tables.is_measured(summary, best)
            line.append(
                {
                    "length": None if best is None else report_tables.length(best.draft_length),
                    "is_open": best is not None and not best.is_settled,
                    "gain": f"{'' if measured else '≈'}{best.speedup.value:.2f}×"
                    if best and best.draft_length
                    else "",
                    "series": colors.get(best.draft_length, 0) if best else 0,
                }
            )
        lines.append((row.task, line))
    return lines


def _sections(summary: Summary, looks: Mapping[int, Any], name: str) -> Iterator[Section]:
    for plot in TASK_PLOTS:
        table = plot.table(summary)
        lines: dict[str, list[str]] = {}
        for line in table.lines:
            lines.setdefault(line[0], []).append(_said(table.head, line))
        panels = tuple(
            (
                row.task,
                svg(
                    partial(plot.draw, summary=summary, task=row.task, looks=looks),
                    f"{name}-{plot.name}-{i}",
                    f"{plot.title}, {row.task}. {'; '.join(lines[row.task])}",
                    PANEL_SIZE,
                ),
            )
            for i, row in enumerate(summary.tasks)
            if row.task in lines
        )
        if panels:
            key = _key(looks, f"{name}-{plot.name}", plot.key_from)
            yield Section(plot.title, plot.intro, key, panels, table)


def _key(looks: Mapping[int, Any], name: str, start: int | None) -> tuple[tuple[str, str], ...]:
    """What color and marker each draft length from `start` on has."""
    return tuple(
        (_label(k), marker_svg(f"{name}-key{k}", *look))
        for k, look in sorted(looks.items())
        if start is not None and k >= start
    )


def _label(draft_length: int) -> str:
    return f"K = {draft_length}" if draft_length else "none"


def _said(head: Sequence[str], line: Sequence[str]) -> str:
    """A line of a table as a screen reader says it; the task is said once, before."""
    pairs = list(zip(head, line, strict=True))[1:]
    return ", ".join(f"{what} {value}" for what, value in pairs if value != report_tables.NONE)


def _prediction(summary: Summary, looks: Mapping[int, Any], name: str) -> Iterator[Section]:
    table = report_tables.predictions(summary)
    if not table.lines:
        return
    words = f"Predicted against measured speedup of {len(table.lines)} cells, listed in the table."
    drawn = svg(
        partial(plots.prediction, summary=summary, looks=looks), f"{name}-prediction", words,
        (3.5, 2.8),
    )  # fmt: skip
    yield Section(
        "Predicted against measured",
        "Each cell's speedup from the others alone: its task's acceptance length at other loads, "
        "divided by what a step costs other tasks at this load. On the dashed line the two agree; "
        "the band is 10% to both sides.",
        _key(looks, f"{name}-prediction", 1),
        (("all tasks", drawn),),
        table,
    )


def _replay(one: Replay, name: str) -> dict[str, Any]:
    table = report_replay.tasks(one.replay)
    words = "Throughput lost by task. " + "; ".join(f"{r[0]} {r[2]}" for r in table.lines)
    size = (PANEL_SIZE[0], 0.6 + 0.3 * len(one.replay.tasks))
    draw = partial(report_replay.regret_by_task, replay=one.replay)
    return {
        "name": one.name,
        "headline": report_replay.headline(one.replay),
        "table": table,
        "plot": svg(draw, f"{name}-regret", words, size),
    }


def picture(report: Report) -> bytes:
    """The plots of the newest profile, or of the first replay, as one PNG."""
    if report.profiles:
        summary = report.profiles[-1].summary
        if not summary.tasks:
            raise InputError(f"{report.profiles[-1].name} holds no cell to draw")
        looks = plots.styles([row.key.draft_length for row in summary.rows])
        return png(
            {row.task: [partial(plot.draw, summary=summary, task=row.task, looks=looks)
                        for plot in TASK_PLOTS] for row in summary.tasks},
            [plot.title for plot in TASK_PLOTS],
            {_label(length): look for length, look in sorted(looks.items())},
        )  # fmt: skip
    draw: Draw = partial(report_replay.regret_by_task, replay=report.replays[0].replay)
    return png({report.replays[0].name: [draw]}, ["throughput lost"], {})
