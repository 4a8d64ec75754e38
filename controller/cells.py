"""A calibration's cells by key, and the prediction AL(task, K) / R(K, load) for each."""

import math
import statistics
from collections.abc import Iterator, Mapping

from trt_mtp.controller.calibration import Calibration, Cell, CellKey
from trt_mtp.controller.profile import Profile

Cells = Mapping[CellKey, Cell]


def by_key(calibration: Calibration) -> dict[CellKey, Cell]:
    """The cells that hold answers, in the order of the file."""
    return {cell.key: cell for cell in calibration.cells if cell.num_requests}


def unmeasured(calibration: Calibration) -> list[CellKey]:
    """The cells that a run skipped, and its cells without an answer."""
    empty = (cell.key for cell in calibration.cells if not cell.num_requests)
    known = by_key(calibration)
    return [key for key in dict.fromkeys([*calibration.unmeasured, *empty]) if key not in known]


def survival(cells: Cells, task: str, *, leave_out: CellKey | None = None) -> tuple[float, ...]:
    """S_1, S_2 … of a task: the share of steps whose first j drafts were all accepted.

    Pooled over draft lengths and loads, because acceptance depends on neither.
    """
    steps: list[int] = []
    accepted: list[int] = []
    for key, cell in cells.items():
        if key.task != task or key == leave_out:
            continue
        for j, count in enumerate(cell.accepted_per_position):
            if j == len(steps):
                steps.append(0)
                accepted.append(0)
            steps[j] += cell.num_steps
            accepted[j] += count
    return tuple(a / n for a, n in zip(accepted, steps, strict=True) if n)


def expected_speedup(profile: Profile, cells: Cells, key: CellKey) -> float | None:
    """AL over R for a cell that was not measured, with the profile's own table of R.

    None at draft length 0, and if nothing was drafted for the task.
    """
    known = survival(cells, key.task)
    if key.draft_length == 0 or not known:
        return None
    while len(known) < key.draft_length:  # as acceptance.py goes on beyond what it has seen
        known = (*known, known[-1] * profile.decay_ratio * known[0])
    length = 1 + sum(known[: key.draft_length])
    return length / profile.step_cost().ratio(key.draft_length, key.concurrency)


def _acceptance_length(cells: Cells, key: CellKey, leave_out: CellKey) -> float | None:
    known = survival(cells, key.task, leave_out=leave_out)
    return 1 + sum(known[: key.draft_length]) if len(known) >= key.draft_length else None


def predicted_speedup(cells: Cells, key: CellKey) -> float | None:
    """AL over R for one cell, predicted from the others; None if they are too few.

    R is the median of AL / speedup over the other tasks at the same draft length and load.
    """
    if key.draft_length == 0:
        return None
    length = _acceptance_length(cells, key, key)
    ratios = []
    for other, cell in cells.items():
        if other[1:] == key[1:] and other.task != key.task and cell.speedup:
            own = _acceptance_length(cells, other, key)
            if own and cell.speedup.value > 0:
                ratios.append(own / cell.speedup.value)
    if length is None or not ratios:
        return None
    value = length / statistics.median(ratios)
    return value if math.isfinite(value) else None


def prediction_errors(calibration: Calibration) -> Iterator[float]:
    """log of measured over predicted speedup, each cell predicted from the others."""
    cells = by_key(calibration)
    for key, cell in cells.items():
        predicted = predicted_speedup(cells, key)
        if cell.speedup is not None and predicted is not None:
            yield math.log(cell.speedup.value / predicted)
