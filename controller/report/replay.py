"""The file of `trt-mtp replay --json`, checked, and what it says in words, tables and a plot."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_mtp.controller.report.plots import GRID, INK, SERIES
from trt_mtp.controller.report.tables import NONE, Table
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # a replay may say more than is shown


class Ratio(_Record):
    """Throughput over another policy's, with its 95% interval."""

    ratio: Finite
    low: Finite
    high: Finite


class Comparison(_Record):
    """A group of requests under the policy and under others."""

    requests: Count
    tokens_per_s: Finite
    regret: Finite
    over_oracle: Ratio
    over_best_static: Ratio
    over_none: Ratio | None = None  # none where a request had no variant without speculation


class TaskComparison(Comparison):
    """The requests of one task."""

    task: str
    chosen: dict[str, Finite]


class ReplayReport(Comparison):
    """What `trt-mtp replay --json` prints."""

    schema_version: Literal[1]
    policy: str
    requests_skipped: Count
    explored: Count
    tasks: tuple[TaskComparison, ...]


def parse_replay(value: Any, where: str) -> ReplayReport:
    """The replay in a JSON value that came from `where`; raises InputError."""
    try:
        return ReplayReport.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error, ReplayReport.model_fields)}") from None


def is_replay(value: Any) -> bool:
    """Whether a JSON value looks like a replay rather than a profile."""
    return isinstance(value, dict) and "over_oracle" in value


def ratio(value: Ratio | None) -> str:
    """`1.016 (1.010 to 1.021)`."""
    return f"{value.ratio:.3f} ({value.low:.3f} to {value.high:.3f})" if value else NONE


def headline(replay: ReplayReport) -> str:
    """What was lost and gained, in words."""
    policy = "As logged" if replay.policy == "logged" else f"Under the {replay.policy} policy"
    text = (
        f"{policy}, {replay.requests} requests lost {replay.regret:.1%} "
        "against the best draft length for each, known afterwards. Their throughput was "
        f"{ratio(replay.over_best_static)} times that of the best single length for each load"
    )
    if replay.over_none:
        text += f", and {ratio(replay.over_none)} times that without speculation"
    return text + "."


def tasks(replay: ReplayReport) -> Table:
    """Regret and ratios of each task, and of all."""
    head = ("task", "requests", "regret", "over the best for each", "over the best single length",
            "over none", "chosen K", "tok/s a request")  # fmt: skip
    lines = [_line("all", replay, NONE)]
    for row in replay.tasks:
        chosen = ", ".join(
            f"{'none' if k == '0' else k}: {share:.0%}" for k, share in row.chosen.items()
        )
        lines.append(_line(row.task, row, chosen))
    return Table(head, tuple(lines))


def _line(name: str, row: Comparison, chosen: str) -> tuple[str, ...]:
    ratios = (row.over_oracle, row.over_best_static, row.over_none)
    return (name, str(row.requests), f"{row.regret:.1%}", *map(ratio, ratios), chosen,
            f"{row.tokens_per_s:.1f}")  # fmt: skip


def regret_by_task(axes: Any, replay: ReplayReport) -> None:
    """A bar a task: what was lost against the best length for each request."""
    rows = replay.tasks[::-1]
    bars = axes.barh(range(len(rows)), [100 * row.regret for row in rows], 0.6, color=SERIES[1])
    axes.bar_label(bars, [f"{row.regret:.1%}" for row in rows], color=INK, padding=3)
    axes.set_yticks(range(len(rows)), [row.task for row in rows])
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=GRID, lw=1)
    axes.set(xlabel="% of throughput lost")
