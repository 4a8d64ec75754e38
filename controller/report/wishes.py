"""What a reader wants to know of a calibration: the gain of their own mix, and their limits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trt_mtp.controller.calibration import BestLength, Cell, CellKey
from trt_mtp.controller.cells import by_key
from trt_mtp.controller.decision_log import read_log
from trt_mtp.controller.mix import parse_mix
from trt_mtp.controller.report.summary import Summary
from trt_mtp.controller.report.tables import NONE, Table, number
from trt_mtp.errors import InputError


@dataclass(frozen=True, slots=True)
class Wishes:
    """Shares of the output tokens by task, and the 95th percentiles that an answer may have."""

    mix: Mapping[str, float] = field(default_factory=dict)  # any sum
    ttft_p95_ms: float | None = None
    tpot_p95_ms: float | None = None

    @property
    def has_limits(self) -> bool:
        """Whether there is a limit."""
        return self.ttft_p95_ms is not None or self.tpot_p95_ms is not None


class MixGain(NamedTuple):
    """What the advice gains for a mix at one load; speeds are of tokens after the first."""

    concurrency: int
    over_none: float
    best_single: int  # the draft length that is fastest for the whole mix
    over_single: float


def read_mix(text: str) -> dict[str, float]:
    """`coding=3,qa=1`, or the tokens by task of a gateway's decision log; raises InputError."""
    return parse_mix(text) if "=" in text else _logged(Path(text))


def _logged(path: Path) -> dict[str, float]:
    tokens: dict[str, float] = {}
    for record in read_log(path):
        task = record.decision.task
        tokens[task] = tokens.get(task, 0.0) + record.outcome.num_output_tokens
    tokens = {task: count for task, count in tokens.items() if count}
    if not tokens:
        raise InputError(f"--mix: {path} has no answer with a token")
    return tokens


def mix_gains(summary: Summary, mix: Mapping[str, float]) -> list[MixGain]:
    """What the advice gains for `mix` at each load; a task that was not measured is left out.

    Raises InputError if none was.
    """
    known = {row.task: mix[row.task] for row in summary.tasks if row.task in mix}
    if not known:
        raise InputError(
            f"--mix: none of {', '.join(sorted(mix))} was measured; the profile has "
            f"{', '.join(row.task for row in summary.tasks)}"
        )
    return list(_mix_gains(summary, known))


def _mix_gains(summary: Summary, mix: Mapping[str, float]) -> Iterator[MixGain]:
    speedups = {row.key: row.speedup for row in summary.rows}
    lengths = sorted({key.draft_length for key in speedups})
    for load in summary.concurrencies:
        times = {
            k: _time(mix, {t: speedups.get(CellKey(t, k, load)) for t in mix}) for k in lengths
        }
        chosen = {task: summary.best(task, load) for task in mix}
        gains = {task: _gain(speedups, best) for task, best in chosen.items()}
        routed = _time(mix, gains)
        # none is 1 by definition, also where it was not measured
        known = [(time, k) for k, time in times.items() if time is not None]
        single = min(known, default=(sum(mix.values()), 0))
        if routed is not None:
            yield MixGain(load, sum(mix.values()) / routed, single[1], single[0] / routed)


def _gain(speedups: Mapping[CellKey, float | None], best: BestLength | None) -> float | None:
    """The speedup of an advised length, from the cell that single lengths are judged by, too."""
    if best is None:
        return None
    key = CellKey(best.task, best.draft_length, best.concurrency)
    return speedups.get(key) or best.speedup.value


def _time(mix: Mapping[str, float], speedups: Mapping[str, float | None]) -> float | None:
    """The mix's time, that without speculation being 1 a share; None if a speedup isn't known."""
    times = [share / gain for task, share in mix.items() if (gain := speedups[task])]
    return sum(times) if len(times) == len(mix) else None


def left_out(summary: Summary, mix: Mapping[str, float]) -> list[str]:
    """The tasks of a mix that were not measured."""
    return sorted(mix.keys() - {row.task for row in summary.tasks})


def mix_table(summary: Summary, mix: Mapping[str, float]) -> Table:
    """`mix_gains` as text."""
    head = ("requests at a time", "over no speculation", "best single K", "over that length alone")
    lines = (
        (str(gain.concurrency), f"{gain.over_none:.2f}×", str(gain.best_single),
         f"{gain.over_single:.2f}×")
        for gain in mix_gains(summary, mix)
    )  # fmt: skip
    return Table(head, tuple(lines))


def limits_table(summary: Summary, wishes: Wishes) -> Table:
    """For each task and load, whether the advised length holds the limits; p95 in ms."""
    cells = by_key(summary.calibration)
    head = ("task", *(f"at {load}" for load in summary.concurrencies), "holds up to")
    lines = []
    for row in summary.tasks:
        held: list[int] = []
        shown = []
        for load in summary.concurrencies:
            best = summary.best(row.task, load)
            cell = cells.get(CellKey(row.task, best.draft_length, load)) if best else None
            if cell is None:
                shown.append(NONE)
                continue
            shown.append(_shown(cell, wishes))
            held += [load] if holds(cell, wishes) else []
        unknown = NONE in shown and not any(cell.startswith("✗") for cell in shown)
        lines.append((row.task, *shown, str(max(held)) if held else "?" if unknown else "none"))
    return Table(head, tuple(lines))


def wished(summary: Summary, wishes: Wishes) -> Iterator[tuple[str, str, Table]]:
    """Title, introduction and table of each thing that was asked for."""
    if wishes.mix:
        missing = left_out(summary, wishes.mix)
        note = f" Not measured, and left out: {', '.join(missing)}." if missing else ""
        shares = ", ".join(f"{task} {share:g}" for task, share in sorted(wishes.mix.items()))
        yield (
            "Your mix",
            f"Text after the first token, at these shares of output tokens: {shares}.{note}",
            mix_table(summary, wishes.mix),
        )
    if wishes.has_limits:
        limits = " and ".join(
            f"{name} of at most {limit:g} ms"
            for name, limit in (("TTFT", wishes.ttft_p95_ms), ("TPOT", wishes.tpot_p95_ms))
            if limit is not None
        )
        yield (
            "Your limits",
            f"Whether 95 of 100 answers at the advised length have a {limits}, by requests at a "
            "time, as measured; – was not measured.",
            limits_table(summary, wishes),
        )


def holds(cell: Cell, wishes: Wishes) -> bool:
    """Whether the 95th percentiles of a cell are within the limits."""
    limits = ((cell.ttft_ms.p95, wishes.ttft_p95_ms), (cell.tpot_ms.p95, wishes.tpot_p95_ms))
    return all(limit is None or value <= limit for value, limit in limits)


def _shown(cell: Cell, wishes: Wishes) -> str:
    parts = []
    if wishes.ttft_p95_ms is not None:
        parts.append(f"TTFT {number(cell.ttft_ms.p95)}")
    if wishes.tpot_p95_ms is not None:
        parts.append(f"TPOT {number(cell.tpot_ms.p95)}")
    return ("✓ " if holds(cell, wishes) else "✗ ") + ", ".join(parts)
