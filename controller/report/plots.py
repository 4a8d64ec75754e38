"""The report's plots, each drawn into given axes: one task a panel, one color a draft length."""

from collections.abc import Mapping, Sequence
from typing import Any

from trt_mtp.controller.calibration import CellKey, Interval
from trt_mtp.controller.cells import by_key, survival
from trt_mtp.controller.report.summary import CellRow, Summary, frontier

INK = "#1b1f24"
MUTED = "#59636e"
GRID = "#d1d9e0"
# of the draft lengths, shallowest first: one ramp, in which deeper is another hue and no better or
# worse; no speculation is grey. Told apart also without color vision and in grey, by their markers.
# The page replaces them by its own for light and dark.
SERIES = (MUTED, "#2a93b8", "#2a6fc4", "#4a4fb8", "#6d2f9e", "#93227f", "#7a1745")
MARKERS = "os^Dv*PX"


def styles(lengths: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Colour and marker of each draft length; 0 is always grey."""
    drafting = sorted({k for k in lengths if k > 0})
    styles = {0: (SERIES[0], MARKERS[0])}
    for i, length in enumerate(drafting):
        styles[length] = (SERIES[1 + i % (len(SERIES) - 1)], MARKERS[1 + i % (len(MARKERS) - 1)])
    return styles


def _lengths(rows: Sequence[CellRow]) -> list[int]:
    return sorted({row.key.draft_length for row in rows})


def _of(summary: Summary, task: str) -> list[CellRow]:
    return [row for row in summary.rows if row.key.task == task]


def _points(axes: Any, xs: Sequence[float], rows: Sequence[CellRow], look: tuple[str, str]) -> None:
    """A marker a cell, hollow where it is predicted, with its interval where it is measured."""
    color, marker = look
    for filled in (True, False):
        own = [(x, r.speedup) for x, r in zip(xs, rows, strict=True) if r.is_predicted != filled]
        axes.plot(*_columns(own), marker, color=color, ms=5, mfc=color if filled else "none",
                  mew=1.2, zorder=3)  # fmt: skip
    bars = [(x, *_ends(r.measured)) for x, r in zip(xs, rows, strict=True) if r.measured]
    if bars:
        axes.vlines(*zip(*bars, strict=True), color=color, lw=1.2, zorder=2)


def _columns(points: Sequence[tuple[float, Any]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _ends(interval: Interval) -> tuple[float, float]:
    return min(interval.low, interval.value), max(interval.high, interval.value)


def speedup_by_length(axes: Any, summary: Summary, task: str, looks: Mapping[int, Any]) -> None:
    """Speedup over the draft length at the lowest load, and the line where drafting breaks even."""
    lowest = summary.concurrencies[0]
    rows = [r for r in _of(summary, task) if r.key.concurrency == lowest and r.speedup is not None]
    at = {length: i for i, length in enumerate(sorted(looks))}
    axes.axhline(1, color=INK, lw=1, ls=(0, (4, 3)))
    axes.plot([at[r.key.draft_length] for r in rows], [r.speedup for r in rows], color=GRID, lw=1.5)
    for row in rows:
        _points(axes, [at[row.key.draft_length]], [row], looks[row.key.draft_length])
    best = summary.best(task, lowest)
    if best is not None and best.draft_length in at:
        axes.axvspan(at[best.draft_length] - 0.3, at[best.draft_length] + 0.3,
                     color=GRID, alpha=0.45, lw=0, zorder=0)  # fmt: skip
    axes.set_xticks(list(at.values()), ["none" if k == 0 else str(k) for k in at])
    axes.set(xlabel="draft length K", xlim=(-0.5, len(at) - 0.5))
    _speedup_axis(axes, [row for row in summary.rows if row.key.concurrency == lowest])


def speedup_by_load(axes: Any, summary: Summary, task: str, looks: Mapping[int, Any]) -> None:
    """Speedup over the load, a line a draft length, with a cross where it stops winning."""
    axes.axhline(1, color=INK, lw=1, ls=(0, (4, 3)))
    for length in [k for k in _lengths(summary.rows) if k > 0]:
        color = looks[length][0]
        rows = [r for r in _of(summary, task)
                if r.key.draft_length == length and r.speedup is not None]  # fmt: skip
        xs = [row.key.concurrency for row in rows]
        axes.plot(xs, [row.speedup for row in rows], color=color, lw=1.5)
        _points(axes, xs, rows, looks[length])
        crossing = crossover(summary, task, length)
        if crossing:
            axes.plot([crossing], [1], "x", color=color, ms=8, mew=1.8, zorder=4)
    _load_axis(axes, summary.concurrencies)
    axes.set(xlabel="requests at a time")
    _speedup_axis(axes, summary.rows)


def _speedup_axis(axes: Any, rows: Sequence[CellRow]) -> None:
    """The same for every task, so that panels can be compared.

    What few answers say may leave the plot, and so may wide intervals.
    """
    values = [1.0, *(r.speedup for r in rows if r.speedup is not None and not r.has_few_answers)]
    room = max(0.25 * (max(values) - min(values)), 0.08)
    axes.set(ylabel="speedup", ylim=(min(values) - room, max(values) + room))


def crossover(summary: Summary, task: str, length: int) -> float | None:
    """From how many requests at a time on a length loses; None if it never does."""
    for one in summary.calibration.crossovers:
        if (one.task, one.draft_length) == (task, length) and one.concurrency is not None:
            return one.concurrency if one.concurrency > 0 else None
    return None


def _load_axis(axes: Any, concurrencies: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(concurrencies, [str(c) for c in concurrencies])
    axes.set_xticks([], minor=True)
    axes.set_xlim(concurrencies[0] / 1.25, concurrencies[-1] * 1.25)


def acceptance_by_position(
    axes: Any, summary: Summary, task: str, looks: Mapping[int, Any]
) -> None:
    """The share of steps whose first j drafts were all right, a bar a position."""
    shares = survival(by_key(summary.calibration), task)
    positions = range(1, len(shares) + 1)
    bars = axes.bar(positions, [100 * share for share in shares], 0.65, color=SERIES[1])
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], color=INK, padding=2)
    most = max((len(c.accepted_per_position) for c in summary.calibration.cells), default=0)
    axes.set_xticks(range(1, max(most, 1) + 1))
    axes.set_yticks([0, 50, 100])
    axes.set(xlabel="draft position", ylabel="% right so far", ylim=(0, 118),
             xlim=(0.4, max(most, 1) + 0.6))  # fmt: skip


def latency_and_throughput(
    axes: Any, summary: Summary, task: str, looks: Mapping[int, Any]
) -> None:
    """Time per token against the server's speed, a line a draft length; the frontier is shaded."""
    points = latencies(summary, task)
    for length in _lengths(summary.rows):
        own = [points[key] for key in sorted(points) if key.draft_length == length]
        color, marker = looks[length]
        axes.plot(*_columns(own), color=color, lw=1.5, marker=marker, ms=5)
    axes.plot(*_columns(frontier(points)), color=GRID, lw=8, zorder=0, solid_capstyle="round")
    times, speeds = _columns(list(points.values()))
    axes.set(xlabel="TPOT, ms", ylabel="tok/s of the server")
    axes.set(xlim=(0, 1.08 * max(times, default=1)), ylim=(0, 1.1 * max(speeds, default=0) or 1))


def latencies(summary: Summary, task: str) -> dict[CellKey, tuple[float, float]]:
    """Median TPOT and the server's tokens a second, of the measured cells of a task."""
    return {
        row.key: (row.cell.tpot_ms.p50, row.cell.tokens_per_s.value)
        for row in _of(summary, task)
        if row.cell is not None and row.cell.tpot_ms.p50 > 0
    }


def prediction(axes: Any, summary: Summary, looks: Mapping[int, Any]) -> None:
    """Speedups predicted from the other cells against the measured ones, and 10% to both sides."""
    rows = compared(summary)
    for row, measured in rows:
        color, marker = looks[row.key.draft_length]
        axes.plot([row.predicted], [measured], marker, color=color, ms=5.5, alpha=0.75, mew=0)
    values = [1.0, *(m for _, m in rows), *(row.predicted or 1.0 for row, _ in rows)]
    ends = [min(values) * 0.95, max(values) * 1.05]
    axes.plot(ends, ends, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    axes.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends],
                      color=GRID, alpha=0.5, lw=0, zorder=0)  # fmt: skip
    axes.set(xlabel="speedup, predicted", ylabel="speedup, measured", xlim=ends)


def compared(summary: Summary) -> list[tuple[CellRow, float]]:
    """The cells that were measured and can be predicted from others, with the measured speedup."""
    return [
        (row, row.measured.value)
        for row in summary.rows
        if row.predicted is not None and row.measured is not None
    ]
