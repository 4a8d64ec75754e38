"""Does the model reproduce what was published? Half of each source predicts the other half.

Run `python -m tools.published.check [--seed N] [--json]`.
"""

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from tools.published import runtime
from tools.published.curves import BestLength, best_lengths, mean_regret, within
from tools.published.measurements import (
    MEASUREMENTS_PATH,
    STEP_COSTS_PATH,
    Measurement,
    StepRatio,
    read_measurements,
    read_step_ratios,
)
from tools.published.prediction import predict_speedups
from trt_mtp.errors import InputError

MAX_CELLS = 4000  # the fit takes memory and time with the square and the cube of this


@dataclass(frozen=True, slots=True)
class Prediction:
    """A published speedup and what the other rows say it should be."""

    row: Measurement
    predicted: float
    is_calibrated: bool  # the other rows hold its rig and its task

    @property
    def error(self) -> float:
        """|predicted / reported - 1|."""
        assert self.row.speedup is not None
        return abs(self.predicted / self.row.speedup - 1)


# predictions of `asked` from what is known; see prediction.py and runtime.py
Form = Callable[
    [Sequence[Measurement], Sequence[StepRatio], Sequence[Measurement]], NDArray[np.float64]
]


def check(measurements: Path, step_costs: Path, seed: int = 0) -> dict[str, Any]:
    """The whole report, as printed with --json."""
    rows, ratios = read_measurements(measurements), read_step_ratios(step_costs)
    predictions = cross_predict(rows, ratios, seed)
    counted = [p for p in predictions if p.is_calibrated]
    if not counted:
        raise InputError(
            f"{measurements} has no speedup whose rig and task other rows of its source calibrate"
        )
    best = chosen_lengths(rows, ratios, seed)
    crossings = crossovers(counted)
    return {
        "schema_version": 1,
        "rows_read": len(rows),
        "rows_predicted": len(counted),
        "rows_uncalibrated": len(predictions) - len(counted),
        **_errors([p.error for p in counted]),
        "best_k_cells": len(best),
        "best_k_within_1": within(best, 1),
        "best_k_exact": within(best, 0),
        "regret": mean_regret(best),
        "gateway": _as_the_gateway(rows, ratios, seed),
        "crossovers": len(crossings),
        "crossover_within_2x": _rounded(
            sum(abs(math.log2(a / b)) <= 1.0 for a, b in crossings) / max(len(crossings), 1)
        ) if crossings else None,
        "per_source": _per_source(counted, best),
    }  # fmt: skip


def _as_the_gateway(
    rows: Sequence[Measurement], ratios: Sequence[StepRatio], seed: int
) -> dict[str, Any]:
    """The same figures of the gateway's own form, see runtime.py."""
    predictions = cross_predict(rows, ratios, seed, runtime.predict_speedups)
    best = chosen_lengths(rows, ratios, seed, runtime.predict_speedups)
    return {
        **_errors([p.error for p in predictions if p.is_calibrated]),
        "best_k_within_1": within(best, 1),
        "best_k_exact": within(best, 0),
        "regret": mean_regret(best),
    }


def chosen_lengths(
    rows: Sequence[Measurement], ratios: Sequence[StepRatio], seed: int,
    form: Form = predict_speedups,
) -> list[BestLength]:  # fmt: skip
    """The draft length of each cell, chosen by one fit to a half of the rows."""
    usable, halves = _usable(rows, ratios), _halves(rows, seed)
    fits = [partial(form, half, usable) for half in halves]
    return best_lengths(halves, fits, _cell)  # type: ignore[arg-type]


def _usable(rows: Sequence[Measurement], ratios: Sequence[StepRatio]) -> list[StepRatio]:
    sources = {row.source for row in rows}
    return [r for r in ratios if not (r.is_derived and r.source in sources)]


def cross_predict(
    rows: Sequence[Measurement], ratios: Sequence[StepRatio], seed: int = 0,
    form: Form = predict_speedups,
) -> list[Prediction]:  # fmt: skip
    """Every row with a speedup, predicted from the half of the rows that it is not in.

    A source's derived step ratios hold its speedups, so they are left out where the source is
    among the rows.
    """
    usable = _usable(rows, ratios)
    halves = _halves(rows, seed)
    predictions = []
    for asked_half, known_half in (halves, halves[::-1]):
        asked = [row for row in asked_half if row.speedup is not None]
        if not asked:
            continue
        speedups = form(known_half, usable, asked)
        rigs = {(row.source, row.rig, row.method) for row in known_half if row.speedup is not None}
        tasks = {(row.source, row.task_source) for row in known_half}
        for row, speedup in zip(asked, speedups, strict=True):
            calibrated = (row.source, row.rig, row.method) in rigs
            calibrated = calibrated and (row.source, row.task_source) in tasks
            predictions.append(Prediction(row, float(speedup), calibrated))
    return predictions


def _cell(row: Measurement) -> tuple[object, ...]:
    """What a row was measured on, draft length apart."""
    return (
        row.source, row.rig, row.method, row.task_source, row.temperature, row.thinking,
        row.gate, row.concurrency, row.context,
    )  # fmt: skip


def _halves(rows: Sequence[Measurement], seed: int) -> tuple[list[Measurement], list[Measurement]]:
    """Cells of a rig dealt to two halves in an order that only the seed and the cell decide.

    Rows of the same cell and draft length stay together, so that no repeat gives a row away.
    """
    if len({(*_cell(row), row.draft_length) for row in rows}) > 2 * MAX_CELLS:
        raise InputError(f"more than {2 * MAX_CELLS} cells: give the sources in several files")
    groups: dict[tuple[object, ...], dict[tuple[object, ...], list[Measurement]]] = {}
    for row in rows:
        cells = groups.setdefault((row.source, row.rig, row.method), {})
        cells.setdefault((*_cell(row), row.draft_length), []).append(row)
    halves: tuple[list[Measurement], list[Measurement]] = ([], [])
    for cells in groups.values():
        for i, key in enumerate(sorted(cells, key=lambda key: _digest(seed, key))):
            halves[i % 2].extend(cells[key])
    return halves


def _digest(seed: int, key: tuple[object, ...]) -> bytes:
    return hashlib.sha256(f"{seed} {key!r}".encode()).digest()


def crossovers(predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """(measured, predicted) concurrency at which speculation stops paying, where both have one."""
    series: dict[tuple[object, ...], list[Prediction]] = defaultdict(list)
    for p in predictions:
        cell = _cell(p.row)
        series[(*cell[:-2], cell[-1], p.row.draft_length)].append(p)
    crossings = []
    for points in series.values():
        points.sort(key=lambda p: p.row.concurrency)
        loads = [p.row.concurrency for p in points]
        measured = _crossing(loads, [_reported(p) for p in points])
        predicted = _crossing(loads, [p.predicted for p in points])
        if measured and predicted:
            crossings.append((measured, predicted))
    return crossings


def _crossing(loads: Sequence[int], speedups: Sequence[float]) -> float | None:
    """The load, on a log scale, at which the speedup first falls through 1."""
    for i in range(1, len(loads)):
        high, low = speedups[i - 1], speedups[i]
        if high >= 1 > low and loads[i] > loads[i - 1]:
            share = (high - 1) / (high - low)
            return float(loads[i - 1] * (loads[i] / loads[i - 1]) ** share)
    return None


def _reported(prediction: Prediction) -> float:
    assert prediction.row.speedup is not None
    return prediction.row.speedup


def _errors(errors: Sequence[float]) -> dict[str, float]:
    ordered = sorted(errors)
    return {
        "median_abs_error": _rounded(statistics.median(ordered)),
        "p25_abs_error": _rounded(ordered[len(ordered) // 4]),
        "p75_abs_error": _rounded(ordered[3 * len(ordered) // 4]),
        "p90_abs_error": _rounded(ordered[9 * len(ordered) // 10]),
    }


def _per_source(
    predictions: Sequence[Prediction], best: Sequence[BestLength]
) -> list[dict[str, Any]]:
    by_source: dict[str, list[float]] = defaultdict(list)
    for p in predictions:
        by_source[p.row.source].append(p.error)
    return [
        {
            "source": source,
            "rows_predicted": len(errors),
            **_errors(errors),
            "best_k_within_1": within([b for b in best if b.source == source], 1),
        }
        for source, errors in sorted(by_source.items(), key=lambda item: -len(item[1]))
    ]


def _rounded(value: float) -> float:
    return round(value, 4)


def _lost(figures: dict[str, Any]) -> str:
    mean, low, high = figures["regret"] or (0.0, 0.0, 0.0)
    return f"{mean:.1%} ({low:.1%}-{high:.1%})"


@click.command()
@click.option("--seed", default=0, show_default=True, help="How the cells are dealt to halves.")
@click.option("--json", "as_json", is_flag=True)
def main(seed: int, as_json: bool) -> None:
    """Predict half of each source's published cells from the other half, and show the errors."""
    report = check(MEASUREMENTS_PATH, STEP_COSTS_PATH, seed)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{report['rows_predicted']} speedups predicted: median error "
        f"{report['median_abs_error']:.1%}, 90 % within {report['p90_abs_error']:.1%}; "
        f"best K within 1 in {report['best_k_within_1']:.0%} of {report['best_k_cells']} cells, "
        f"{_lost(report)} of the speed lost"
    )
    own = report["gateway"]
    click.echo(
        f"in the gateway's form: median error {own['median_abs_error']:.1%}, 90 % within "
        f"{own['p90_abs_error']:.1%}; best K within 1 in {own['best_k_within_1']:.0%}, "
        f"{_lost(own)} lost"
    )
    click.echo(f"{'rows':>5}{'median':>8}{'90 %':>8}  source")
    for row in report["per_source"]:
        click.echo(
            f"{row['rows_predicted']:>5}{row['median_abs_error']:>8.1%}"
            f"{row['p90_abs_error']:>8.1%}  {row['source']}"
        )


if __name__ == "__main__":
    main()
