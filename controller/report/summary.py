"""What a calibration says of each task: the length to use, its gain, where it stops paying."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trt_mtp.controller.calibration import BestLength, Calibration, Cell, CellKey, Interval
from trt_mtp.controller.cells import Cells, by_key, expected_speedup, predicted_speedup, unmeasured
from trt_mtp.controller.profile import Profile

FEW_ANSWERS = 8  # of a cell, whose own speedup then says little


class CellRow(NamedTuple):
    """One cell; without `cell` it was not measured, and `predicted` is all that is known.

    A cell whose answers could not be compared with those at draft length 0 has no speedup either.
    """

    key: CellKey
    cell: Cell | None
    predicted: float | None  # speedup, from the other cells (and the profile's table of R)

    @property
    def speedup(self) -> float | None:
        """As measured, else as predicted; 1 at draft length 0."""
        if self.key.draft_length == 0:
            return 1.0
        return self.measured.value if self.measured else self.predicted

    @property
    def measured(self) -> Interval | None:
        """The speedup as measured; none at draft length 0."""
        return self.cell.speedup if self.cell is not None else None

    @property
    def has_few_answers(self) -> bool:
        """Whether the measured speedup is of few answers; the advice is of all of a run's."""
        return self.cell is not None and self.cell.num_requests < FEW_ANSWERS

    @property
    def is_predicted(self) -> bool:
        """Whether `speedup` is a prediction."""
        return self.key.draft_length > 0 and self.measured is None


class TaskRow(NamedTuple):
    """One task at the lowest load: the length to use, and the cells that say why."""

    task: str
    best: BestLength | None
    cell: Cell | None  # at that length; none where it was not measured
    plain: Cell | None  # without speculation
    drafting: Cell | None  # whose acceptance is shown: `cell`, or the shallowest that drafts
    none_from: int | None  # requests at a time from which no speculation is best


class Summary(NamedTuple):
    """A calibration as the report shows it."""

    calibration: Calibration
    rows: tuple[CellRow, ...]
    tasks: tuple[TaskRow, ...]

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Every load of a cell or an advice, ascending."""
        best = self.calibration.recommendation.best if self.calibration.recommendation else ()
        loads = {row.key.concurrency for row in self.rows} | {one.concurrency for one in best}
        return tuple(sorted(loads))

    def row(self, key: CellKey) -> CellRow | None:
        """The cell at `key`."""
        return next((row for row in self.rows if row.key == key), None)

    def best(self, task: str, concurrency: int) -> BestLength | None:
        """The advice for a task at a load."""
        return best_lengths(self.calibration).get((task, concurrency))


def summarize(profile: Profile, calibration: Calibration) -> Summary:
    """What the report says of a profile's calibration, computed once."""
    cells = by_key(calibration)
    keys = sorted({*cells, *unmeasured(calibration)}, key=_order(calibration.tasks))
    rows = tuple(CellRow(key, cells.get(key), _predicted(profile, cells, key)) for key in keys)
    tasks = dict.fromkeys(row.key.task for row in rows)
    return Summary(calibration, rows, tuple(_task_row(calibration, cells, task) for task in tasks))


def _predicted(profile: Profile, cells: Cells, key: CellKey) -> float | None:
    """From the other cells where there is a measured speedup to compare with, else from all."""
    if key in cells and cells[key].speedup is not None:
        return predicted_speedup(cells, key)
    return expected_speedup(profile, cells, key)


def _order(tasks: Sequence[str]) -> Callable[[CellKey], tuple[int, CellKey]]:
    place = {task: i for i, task in enumerate(tasks)}
    return lambda key: (place.get(key.task, len(place)), key)


def best_lengths(calibration: Calibration) -> dict[tuple[str, int], BestLength]:
    """The advice by task and load."""
    choices = calibration.recommendation.best if calibration.recommendation else ()
    return {(one.task, one.concurrency): one for one in choices}


def _task_row(calibration: Calibration, cells: Cells, task: str) -> TaskRow:
    own = {key: cell for key, cell in cells.items() if key.task == task}
    advice = [one for (name, _), one in sorted(best_lengths(calibration).items()) if name == task]
    lowest = min([key.concurrency for key in own] + [one.concurrency for one in advice], default=1)
    best = next((one for one in advice if one.concurrency == lowest), None)
    at_lowest = {key.draft_length: cell for key, cell in own.items() if key.concurrency == lowest}
    cell = at_lowest.get(best.draft_length) if best else None
    drafting = [at_lowest[k] for k in sorted(at_lowest) if k > 0]
    if cell is not None and cell.draft_length > 0:
        drafting = [cell]
    return TaskRow(
        task, best, cell, at_lowest.get(0), drafting[0] if drafting else None,
        none_from(calibration, advice),
    )  # fmt: skip


def none_from(calibration: Calibration, advice: Sequence[BestLength]) -> int | None:
    """The load from which on the advice for one task is no speculation; None if it never is.

    Loads between two that were measured are told by where the last length stops winning.
    """
    by_load = sorted(advice, key=lambda one: one.concurrency)
    drafting = [one for one in by_load if one.draft_length > 0]
    if not by_load or by_load[-1].draft_length > 0:
        return None
    if not drafting:
        return by_load[0].concurrency
    last = drafting[-1].concurrency
    first = next(one.concurrency for one in by_load if one.concurrency > last)
    crossings = [
        one.concurrency
        for one in calibration.crossovers
        if one.task == by_load[0].task and one.concurrency is not None
    ]
    exact = math.ceil(max(crossings, default=math.inf)) if crossings else first
    return exact if last < exact < first else first


def frontier(points: Mapping[CellKey, tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (time, speed) that no other beats in both, by their time.

    >>> one, two, three = CellKey("a", 0, 1), CellKey("a", 0, 2), CellKey("a", 1, 1)
    >>> frontier({one: (2, 5), two: (4, 9), three: (3, 4)})
    [(2, 5), (4, 9)]
    """
    best: list[tuple[float, float]] = []
    for time, speed in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if not best or speed > best[-1][1]:
            best.append((time, speed))
    return best
