"""Which draft length a fit would choose in each published cell, and what that choice loses.

A cell's whole curve comes from one fit: the one that knows fewer of the cell's draft lengths.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.published.measurements import Measurement

RESAMPLES = 2000
Cell = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class BestLength:
    """The draft length that was fastest in one cell, and the one chosen."""

    source: str
    measured: int
    predicted: int
    regret: float  # the share of the cell's best speed that the chosen length loses


def best_lengths(
    halves: Sequence[Sequence[Measurement]],
    fits: Sequence[Callable[[Sequence[Measurement]], Sequence[float]]],
    cell_of: Callable[[Measurement], Cell],
) -> list[BestLength]:
    """For each cell with speedups at three or more draft lengths; `fits[i]` knows `halves[i]`."""
    curves: dict[Cell, dict[int, list[float]]] = {}
    known: dict[Cell, list[set[int]]] = {}
    rows: dict[tuple[Cell, int], Measurement] = {}
    for i, half in enumerate(halves):
        for row in half:
            if row.speedup is not None:
                cell, length = cell_of(row), row.draft_length
                curves.setdefault(cell, {}).setdefault(length, []).append(row.speedup)
                known.setdefault(cell, [set(), set()])[i].add(length)
                rows[cell, length] = row
    chosen = {
        cell: min((0, 1), key=lambda i, c=cell: len(known[c][i]))  # type: ignore[misc]
        for cell, curve in curves.items()
        if len(curve) >= 3
    }
    asked = [[key for key in rows if chosen.get(key[0]) == i] for i in (0, 1)]
    predicted = {
        key: value
        for keys, fit in zip(asked, fits, strict=True)
        if keys
        for key, value in zip(keys, fit([rows[key] for key in keys]), strict=True)
    }
    return [_best(cell, curves[cell], rows, predicted) for cell in chosen]


def _best(
    cell: Cell,
    curve: Mapping[int, Sequence[float]],
    rows: Mapping[tuple[Cell, int], Measurement],
    predicted: Mapping[tuple[Cell, int], float],
) -> BestLength:
    measured = {length: statistics.median(values) for length, values in curve.items()}
    fastest = max(measured, key=lambda k: (measured[k], -k))
    picked = max(measured, key=lambda k: (predicted[cell, k], -k))
    source = rows[cell, fastest].source
    return BestLength(source, fastest, picked, 1 - measured[picked] / measured[fastest])


def mean_regret(best: Sequence[BestLength], seed: int = 0) -> tuple[float, float, float] | None:
    """The mean share of speed lost, and its 95 % interval over cells (bootstrap)."""
    if not best:
        return None
    values, chance = [one.regret for one in best], random.Random(seed)
    means = sorted(
        statistics.fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return round(statistics.fmean(values), 4), round(low, 4), round(high, 4)


def within(best: Sequence[BestLength], slack: int) -> float | None:
    """The share of cells whose chosen length is at most `slack` from the fastest."""
    if not best:
        return None
    return round(sum(abs(b.measured - b.predicted) <= slack for b in best) / len(best), 4)
