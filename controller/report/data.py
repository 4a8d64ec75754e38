"""The report for other programs: JSON with stable keys, CSV with a row a cell, Markdown."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from trt_mtp.controller.profile_text import conclusion
from trt_mtp.controller.report import replay as report_replay
from trt_mtp.controller.report import tables as report_tables
from trt_mtp.controller.report import text as report_text
from trt_mtp.controller.report.compare import comparison
from trt_mtp.controller.report.report import Calibrated, Replay, Report
from trt_mtp.controller.report.summary import CellRow, TaskRow
from trt_mtp.controller.report.tables import Table
from trt_mtp.controller.report.wishes import Wishes, mix_gains, wished

CSV_HEAD = (
    "profile", "fingerprint", "task", "draft_length", "concurrency", "source", "requests",
    "output_tokens", "steps", "acceptance_rate", "acceptance_length", "accepted_per_position",
    "ttft_ms_p50", "ttft_ms_p95", "ttft_ms_p99", "tpot_ms_p50", "tpot_ms_p95", "tpot_ms_p99",
    "itl_ms_p50", "itl_ms_p95", "itl_ms_p99", "tokens_per_s", "tokens_per_s_low",
    "tokens_per_s_high", "speedup", "speedup_low", "speedup_high", "ended",
)  # fmt: skip
REPLAY_HEAD = (
    "replay", "task", "requests", "regret", "tokens_per_s", "over_oracle", "over_best_static",
    "over_none",
)  # fmt: skip


def to_json_value(report: Report) -> dict[str, Any]:
    """The report as JSON: the advice, and for each task and cell what the page shows."""
    return {
        "schema_version": 1,
        "profiles": [_profile_json(one, report.wishes) for one in report.profiles],
        "replays": [
            {"name": one.name, "headline": report_replay.headline(one.replay)}
            | one.replay.model_dump(mode="json")
            for one in report.replays
        ],
    }


def _profile_json(one: Calibrated, wishes: Wishes) -> dict[str, Any]:
    calibration = one.calibration.model_dump(mode="json", exclude={"cells", "unmeasured", "tasks"})
    return {
        "name": one.name,
        "fingerprint": one.profile.fingerprint,
        "measured_on": one.profile.measured_on,
        "verdict": conclusion(one.calibration),
        "headline": " ".join(report_text.headline(one.summary)),
        "mix": [gain._asdict() for gain in mix_gains(one.summary, wishes.mix)]
        if wishes.mix
        else None,
        "hosting": report_text.hosting(one.summary),
        "tasks": [_task_json(row) for row in one.summary.tasks],
        **calibration,
        "cells": [_cell_json(row) for row in one.summary.rows],
    }


def _task_json(row: TaskRow) -> dict[str, Any]:
    return {
        "task": row.task,
        "draft_length": row.best.draft_length if row.best else None,
        "speedup": list(row.best.speedup) if row.best else None,
        "none_from": row.none_from,
    }


def _cell_json(row: CellRow) -> dict[str, Any]:
    head: dict[str, Any] = dict(row.key._asdict())
    if row.cell is None:
        return head | {"source": _source(row), "predicted_speedup": row.predicted}
    return row.cell.model_dump(mode="json") | {
        "source": _source(row),
        "acceptance_rate": row.cell.acceptance_rate if row.cell.num_steps else None,
        "acceptance_length": row.cell.acceptance_length if row.cell.num_steps else None,
        "predicted_speedup": row.predicted,
    }


def _source(row: CellRow) -> str:
    if row.cell is not None:
        return "measured"
    return "unknown" if row.predicted is None else "predicted"


def to_csv(report: Report) -> str:
    """A row a cell of every profile; without a profile, a row a task of every replay."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if report.profiles:
        writer.writerow(CSV_HEAD)
        for one in report.profiles:
            writer.writerows(_csv_line(one, row) for row in one.summary.rows)
    else:
        writer.writerow(REPLAY_HEAD)
        writer.writerows(line for replay in report.replays for line in _replay_lines(replay))
    return text.getvalue()


def _text_cell(text: str) -> str:
    """Text that spreadsheets take for no formula: it is anybody's."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _csv_line(one: Calibrated, row: CellRow) -> list[Any]:
    cell = row.cell
    named = [_text_cell(one.name), _text_cell(one.profile.fingerprint), _text_cell(row.key.task)]
    head = [*named, *row.key[1:], _source(row)]
    if cell is None:
        return [*head, *[""] * 18, "" if row.predicted is None else row.predicted, "", "", ""]
    return [
        *head,
        cell.num_requests,
        cell.num_output_tokens,
        cell.num_steps,
        cell.acceptance_rate if cell.num_steps else "",
        cell.acceptance_length if cell.num_steps else "",
        " ".join(map(str, cell.accepted_per_position)),
        *cell.ttft_ms,
        *cell.tpot_ms,
        *cell.itl_ms,
        *cell.tokens_per_s,
        *(cell.speedup or ("", "", "")),
        cell.ended,
    ]


def _replay_lines(one: Replay) -> Iterator[list[Any]]:
    for name, row in [("all", one.replay), *((row.task, row) for row in one.replay.tasks)]:
        none = row.over_none.ratio if row.over_none else ""
        yield [
            _text_cell(one.name), _text_cell(name), row.requests, row.regret, row.tokens_per_s,
            row.over_oracle.ratio, row.over_best_static.ratio, none,
        ]  # fmt: skip


def to_markdown(report: Report) -> str:
    """The sentences and tables in GitHub's Markdown."""
    parts = ["# Which draft length to use"]
    if len(report.profiles) > 1:
        parts += ["## Side by side", markdown_table(comparison(report.profiles))]
    for one in report.profiles:
        parts += _profile_parts(one, report.wishes)
    for replay in report.replays:
        parts += [
            f"## {escaped(replay.name)}: what the router's choices cost",
            escaped(report_replay.headline(replay.replay)),
            markdown_table(report_replay.tasks(replay.replay)),
        ]
    return "\n\n".join(parts) + "\n"


def _profile_parts(one: Calibrated, wishes: Wishes) -> Iterator[str]:
    summary = one.summary
    yield f"## {escaped(one.name)}"
    yield escaped(report_text.facts(one.profile, summary))
    yield f"**{escaped(conclusion(one.calibration))}**"
    yield "**" + escaped(" ".join(report_text.headline(summary))) + "**"
    yield escaped(
        " ".join(
            filter(
                None,
                [
                    report_text.hosting(summary),
                    report_text.BASIS,
                    report_text.coverage(summary),
                    report_text.certainty(summary),
                ],
            )
        )
    )
    for title, intro, table in wished(summary, wishes):
        yield f"### {title}"
        yield escaped(intro)
        yield markdown_table(table)
    for title, table in (
        ("Draft length (and speedup) by requests at a time", report_tables.choices(summary)),
        ("Each task at the lowest load", report_tables.tasks(summary)),
        ("Speedup by load", report_tables.speedups_by_load(summary)),
        ("Acceptance by position", report_tables.acceptance_by_position(summary)),
        ("All cells", report_tables.all_cells(summary)),
        ("Where it was measured", report_tables.environment(one.profile, one.calibration)),
    ):
        yield f"### {title}"
        yield markdown_table(table)


def markdown_table(table: Table) -> str:
    """A table of GitHub's Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [table.head, rule, *table.lines]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for sign in "\\|`*_[":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
