"""The report's tables: every number of the page as text, for HTML and Markdown alike."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trt_mtp.controller.calibration import BestLength, Calibration, Cell, CellKey
from trt_mtp.controller.cells import by_key, survival
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.report.plots import compared, crossover
from trt_mtp.controller.report.summary import CellRow, Summary, TaskRow
from trt_mtp.controller.report.text import ratio

NONE = "–"


class Table(NamedTuple):
    """A head and lines of as many cells; the first column names the line."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    return Table(tuple(head), tuple(tuple(line) for line in lines))


def number(value: float) -> str:
    """Three digits where there are as many: `0.123`, `12.3`, `1234`.

    >>> [number(x) for x in (0.1234, 1.5, 12.34, 123.4, 1234.5)]
    ['0.12', '1.50', '12.3', '123', '1234']
    """
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def length(draft_length: int) -> str:
    """A draft length to read: none, 1, 2 …"""
    return str(draft_length) if draft_length else "none"


def choice(best: BestLength | None, *, measured: bool) -> str:
    """The advice of one task at one load: `3 (1.90×)`, with ≈ where it was not measured."""
    if best is None:
        return NONE
    if best.draft_length == 0:
        return "none"
    return f"{best.draft_length} ({'' if measured else '≈'}{best.speedup.value:.2f}×)"


def choices(summary: Summary) -> Table:
    """The length to use for each task at each load."""
    head = ["task", *(str(load) for load in summary.concurrencies), "none from"]
    lines = (
        [row.task, *_task_choices(summary, row.task), NONE if not row.none_from else
         str(row.none_from)]
        for row in summary.tasks
    )  # fmt: skip
    return _table(head, lines)


def _task_choices(summary: Summary, task: str) -> list[str]:
    return [
        choice(best, measured=best is None or is_measured(summary, best))
        for best in (summary.best(task, load) for load in summary.concurrencies)
    ]


def advice(summary: Summary) -> Table:
    """The length to use with its interval, and the lengths that can't be told from it."""
    head = (
        "task", "requests at a time", "use K", "speedup, of all answers (95%)",
        "of this cell alone", "as good within the interval", "may lose (95%)",
    )  # fmt: skip
    rows = [summary.best(row.task, load) for row in summary.tasks for load in summary.concurrencies]
    lines = (
        [one.task, str(one.concurrency), length(one.draft_length), _advised(summary, one),
         _of_cell(summary, one), ", ".join(map(length, one.ties)) or NONE,
         NONE if one.may_lose is None else f"{one.may_lose:.1%}"]
        for one in rows if one is not None
    )  # fmt: skip
    return _table(head, lines)


def _advised(summary: Summary, best: BestLength) -> str:
    if best.draft_length == 0:
        return "1"
    return ("" if is_measured(summary, best) else "≈ ") + ratio(best.speedup)


def _of_cell(summary: Summary, best: BestLength) -> str:
    """What the advised cell's own answers say."""
    row = summary.row(CellKey(best.task, best.draft_length, best.concurrency))
    return row_speedup(row) if row is not None and row.measured is not None else NONE


def is_measured(summary: Summary, best: BestLength) -> bool:
    """Whether the cell behind an advice was measured."""
    row = summary.row(CellKey(best.task, best.draft_length, best.concurrency))
    return row is not None and not row.is_predicted


def tasks(summary: Summary) -> Table:
    """The table per task, at the lowest load and the length to use there."""
    head = (
        "task", "use K", "speedup, of all answers (95%)", "of this cell alone", "acceptance rate",
        "AL", "TTFT ms", "TPOT ms", "TPOT ms at none", "tok/s", "tok/s at none",
    )  # fmt: skip
    return _table(head, (_task_line(summary, row) for row in summary.tasks))


def _task_line(summary: Summary, row: TaskRow) -> list[str]:
    return [
        row.task,
        length(row.best.draft_length) if row.best else NONE,
        _advised(summary, row.best) if row.best else NONE,
        _of_cell(summary, row.best) if row.best else NONE,
        *(_pooled_acceptance(summary, row)
          or _acceptance(row.drafting, named=row.drafting is not row.cell)),
        *_times(row),
        number(row.plain.tokens_per_s.value) if row.plain else NONE,
    ]  # fmt: skip


def _pooled_acceptance(summary: Summary, row: TaskRow) -> list[str] | None:
    """Of a length that was not measured here, from what longer or busier drafts showed."""
    if row.cell is not None or row.best is None or row.best.draft_length == 0:
        return None
    known = survival(by_key(summary.calibration), row.task)[: row.best.draft_length]
    if len(known) < row.best.draft_length:
        return None
    return [f"{sum(known) / len(known):.0%}", number(1 + sum(known))]


def _times(row: TaskRow) -> list[str]:
    """TTFT, TPOT, that at none, and tokens a second; ≈ from those at none if not measured."""
    plain, cell = row.plain, row.cell
    at_none = number(plain.tpot_ms.p50) if plain else NONE
    if cell is not None:
        ttft, tpot, rate = cell.ttft_ms.p50, cell.tpot_ms.p50, cell.tokens_per_s.value
        return [number(ttft), number(tpot), at_none, number(rate)]
    if plain is None or row.best is None or not plain.tokens_per_s.value:
        return [NONE, NONE, at_none, NONE]
    # reading the prompt takes as long at every length; what comes after is faster
    gain, ttft = row.best.speedup.value, plain.ttft_ms.p50
    whole = 1e3 * plain.num_output_tokens / plain.num_requests / plain.tokens_per_s.value
    whole *= plain.concurrency
    rate = plain.tokens_per_s.value * whole / (ttft + max(whole - ttft, 0.0) / gain)
    tpot = plain.tpot_ms.p50 / gain
    return [f"≈ {number(ttft)}", f"≈ {number(tpot)}", at_none, f"≈ {number(rate)}"]


def _acceptance(cell: Cell | None, *, named: bool) -> list[str]:
    """Acceptance rate and length; of a length that is not the one to use, with its name.

    Without steps there is none: the servers didn't tell, or nothing was answered.
    """
    if cell is None or not cell.num_steps:
        return [NONE, NONE]
    at = f" at K = {cell.draft_length}" if named else ""
    return [f"{cell.acceptance_rate:.0%}{at}", f"{cell.acceptance_length:.2f}{at}"]


def speedups_by_length(summary: Summary) -> Table:
    """Speedup of each length at the lowest load."""
    lowest = summary.concurrencies[0] if summary.concurrencies else 0
    rows = [row for row in summary.rows if row.key.concurrency == lowest]
    lines = ([r.key.task, length(r.key.draft_length), row_speedup(r)] for r in rows)
    return _table(("task", "K", "speedup (95%)"), lines)


def row_speedup(row: CellRow) -> str:
    """A cell's own speedup: with its interval, or marked ≈ where it is predicted.

    Few answers are named, because their interval alone doesn't say why it is wide.
    """
    if row.measured is not None and row.cell is not None:
        few = f", {row.cell.num_requests} answers" if row.has_few_answers else ""
        return ratio(row.measured) + few
    if row.key.draft_length == 0:
        return "1"
    return f"≈ {row.predicted:.2f}" if row.predicted is not None else NONE


def speedups_by_load(summary: Summary) -> Table:
    """Speedup of each length at each load, and from where on it loses."""
    by_line: dict[tuple[str, int], dict[int, CellRow]] = {}
    for row in summary.rows:
        if row.key.draft_length:
            line = by_line.setdefault((row.key.task, row.key.draft_length), {})
            line[row.key.concurrency] = row
    head = ["task", "K", *(f"at {load}" for load in summary.concurrencies), "loses from"]
    return _table(head, (_load_line(summary, *key, rows) for key, rows in by_line.items()))


def _load_line(summary: Summary, task: str, k: int, rows: dict[int, CellRow]) -> list[str]:
    crossing = crossover(summary, task, k)
    speedups = [row_speedup(rows[load]) if load in rows else NONE for load in summary.concurrencies]
    return [task, str(k), *speedups, number(crossing) if crossing else NONE]


def acceptance_by_position(summary: Summary) -> Table:
    """The share of steps whose first j drafts were all right."""
    cells = by_key(summary.calibration)
    shares = {row.task: survival(cells, row.task) for row in summary.tasks}
    most = max(map(len, shares.values()), default=0)
    head = ["task", *(f"draft {j + 1}" for j in range(most))]
    lines = (
        [task, *(f"{share:.1%}" for share in own), *[NONE] * (most - len(own))]
        for task, own in shares.items()
    )
    return _table(head, lines)


def latency_and_throughput(summary: Summary) -> Table:
    """Time per token beside the server's speed."""
    head = ("task", "K", "requests at a time", "TPOT ms", "tok/s (95%)")
    lines = (
        [
            *key_cells(row.key),
            number(row.cell.tpot_ms.p50),
            "{} ({} to {})".format(*map(number, row.cell.tokens_per_s)),
        ]
        for row in summary.rows
        if row.cell is not None
    )
    return _table(head, lines)


def predictions(summary: Summary) -> Table:
    """Measured speedups beside those predicted from the other cells."""
    head = ("task", "K", "requests at a time", "predicted", "measured", "off by")
    lines = (
        [*key_cells(row.key), f"{row.predicted:.2f}", f"{measured:.2f}",
         f"{row.predicted / measured - 1:+.1%}" if measured else NONE]
        for row, measured in compared(summary)
        if row.predicted is not None
    )  # fmt: skip
    return _table(head, lines)


def key_cells(key: CellKey) -> list[str]:
    """Task, length and load of a line."""
    return [key.task, length(key.draft_length), str(key.concurrency)]


def all_cells(summary: Summary) -> Table:
    """Everything that was measured, a line a cell."""
    head = (
        "task", "K", "requests at a time", "answers", "tokens", "steps", "acceptance rate", "AL",
        "TTFT ms p50/p95/p99", "TPOT ms p50/p95/p99", "ITL ms p50/p95/p99", "tok/s (95%)",
        "speedup (95%)", "ended",
    )  # fmt: skip
    return _table(head, (_cell_line(row) for row in summary.rows))


def _cell_line(row: CellRow) -> list[str]:
    cell = row.cell
    if cell is None:
        return [*key_cells(row.key), *[NONE] * 9, row_speedup(row), "not measured"]
    return [
        *key_cells(row.key),
        *(str(count) for count in (cell.num_requests, cell.num_output_tokens, cell.num_steps)),
        *(_acceptance(cell, named=False) if row.key.draft_length else [NONE, NONE]),
        *(" / ".join(map(number, part)) for part in (cell.ttft_ms, cell.tpot_ms, cell.itl_ms)),
        "{} ({} to {})".format(*map(number, cell.tokens_per_s)),
        row_speedup(row),
        cell.ended,
    ]


def environment(profile: Profile, calibration: Calibration) -> Table:
    """Where, with what and when it was measured."""
    lines = {
        "measured": calibration.created,
        "took": f"{calibration.duration_s:.0f} s",
        "fingerprint": profile.fingerprint or "none: fits any variants",
        **profile.measured_on,
        **calibration.environment,
        "prompts": calibration.prompts,
        "temperature": f"{calibration.temperature:g}",
        "most tokens of an answer": str(calibration.max_tokens),
        "seed": str(calibration.seed),
        "notes": profile.notes,
    }
    return _table(("what", "value"), ([k, v] for k, v in lines.items() if v))
