"""Two profiles compared and joined, and what in one contradicts itself."""

from collections.abc import Iterator, Mapping

from trt_mtp.controller.calibration import Calibration, Cell
from trt_mtp.controller.counts import Counts
from trt_mtp.controller.profile import Profile, differing_parts
from trt_mtp.errors import InputError

LARGEST_STEP = 1.5  # of R between neighbouring draft lengths per drafted token: more is unlikely


def diff(before: Profile, after: Profile) -> Iterator[str]:
    """What changed, a line each; nothing for equal profiles."""
    if before.fingerprint != after.fingerprint:
        parts = differing_parts(before.measured_on, after.measured_on)
        yield f"fingerprint {before.fingerprint or 'none'} -> {after.fingerprint or 'none'}{parts}"
    for batch in sorted({*before.plain_step_s, *after.plain_step_s}):
        one, other = before.plain_step_s.get(batch), after.plain_step_s.get(batch)
        yield from _changed(f"plain step at {batch}, ms", _ms(one), _ms(other))
    for length in sorted({*before.step_ratio, *after.step_ratio}):
        curves = before.step_ratio.get(length, {}), after.step_ratio.get(length, {})
        for batch in sorted({*curves[0], *curves[1]}):
            name = f"R at K={length}, {batch} at a time"
            yield from _changed(name, curves[0].get(batch), curves[1].get(batch))
    for task in sorted({*before.acceptance, *after.acceptance}):
        one, other = before.acceptance.get(task), after.acceptance.get(task)
        yield from _changed(f"first draft of {task} accepted", one, other)
    yield from _choices(before.calibration, after.calibration)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _changed(name: str, one: float | None, other: float | None) -> Iterator[str]:
    if one is None or other is None:
        if one != other:
            yield f"{name}: {_number(one)} -> {_number(other)}"
    elif one != other:
        yield f"{name}: {_number(one)} -> {_number(other)} ({other / one - 1:+.1%})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _choices(before: Calibration | None, after: Calibration | None) -> Iterator[str]:
    one, other = _best(before), _best(after)
    for task, load in sorted({*one, *other}):
        lengths = [f"K={b[task, load]}" if (task, load) in b else "none" for b in (one, other)]
        if lengths[0] != lengths[1]:
            yield f"best for {task}, {load} at a time: {lengths[0]} -> {lengths[1]}"


def _best(calibration: Calibration | None) -> dict[tuple[str, int], int]:
    if calibration is None or calibration.recommendation is None:
        return {}
    return {(b.task, b.concurrency): b.draft_length for b in calibration.recommendation.best}


def merge(first: Profile, second: Profile) -> Profile:
    """Both together: counts pooled, cells of both; where both have a number, the later run's.

    The recommendation and the crossovers are the later run's; calibrate again for those of both
    together. Raises InputError when the two are of different deployments.
    """
    if first.fingerprint != second.fingerprint:
        parts = differing_parts(first.measured_on, second.measured_on)
        raise InputError(
            f"the profiles are of {first.fingerprint or 'no fingerprint'} and "
            f"{second.fingerprint or 'none'}{parts}: only profiles of one deployment can be merged"
        )
    early, late = sorted((first, second), key=_created)
    ratios = {
        length: {**early.step_ratio.get(length, {}), **late.step_ratio.get(length, {})}
        for length in sorted({*early.step_ratio, *late.step_ratio})
    }
    return late.model_copy(
        update={
            "plain_step_s": dict(sorted({**early.plain_step_s, **late.plain_step_s}.items())),
            "step_ratio": {length: dict(sorted(curve.items())) for length, curve in ratios.items()},
            "acceptance": {**early.acceptance, **late.acceptance},
            "posteriors": _pooled(early.posteriors, late.posteriors),
            "calibration": _joined(early.calibration, late.calibration),
        }
    )


def _created(profile: Profile) -> str:
    return profile.calibration.created if profile.calibration else ""


def _pooled(
    one: Mapping[str, dict[str, list[float]]], other: Mapping[str, dict[str, list[float]]]
) -> dict[str, dict[str, list[float]]]:
    return {
        key: Counts.total(Counts.from_json(p[key]) for p in (one, other) if key in p).to_json()
        for key in sorted({*one, *other})
    }


def _joined(early: Calibration | None, late: Calibration | None) -> Calibration | None:
    if early is None or late is None:
        return late or early
    cells = {_place(cell): cell for cell in (*early.cells, *late.cells)}
    measured = set(cells)
    return late.model_copy(
        update={
            "tasks": tuple(dict.fromkeys((*early.tasks, *late.tasks))),
            "draft_lengths": tuple(sorted({*early.draft_lengths, *late.draft_lengths})),
            "concurrencies": tuple(sorted({*early.concurrencies, *late.concurrencies})),
            "duration_s": early.duration_s + late.duration_s,
            "cells": tuple(cells[place] for place in sorted(cells)),
            "unmeasured": tuple(
                place
                for place in sorted({*early.unmeasured, *late.unmeasured})
                if place not in measured
            ),
        }
    )


def _place(cell: Cell) -> tuple[str, int, int]:
    return cell.task, cell.draft_length, cell.concurrency


def findings(profile: Profile) -> Iterator[str]:
    """What in a profile contradicts itself, a line each."""
    for load in sorted({load for curve in profile.step_ratio.values() for load in curve}):
        last_length, last = 0, 1.0
        for length, curve in sorted(profile.step_ratio.items()):
            ratio = curve.get(load)
            if ratio is None:
                yield f"step_ratio.{length} has no value at {load}: it is interpolated"
                continue
            if ratio < last:
                yield f"R falls from {last:.3g} to {ratio:.3g} between K={last_length} and {length}"
            if ratio - last > LARGEST_STEP * (length - last_length):
                yield (
                    f"R at {load} rises from {last:.3g} to {ratio:.3g} between K={last_length} and "
                    f"{length}: drafts that cost more than plain steps"
                )
            last_length, last = length, ratio
    if profile.calibration is not None:
        yield from _cell_findings(profile.calibration)


def _cell_findings(calibration: Calibration) -> Iterator[str]:
    for cell in calibration.cells:
        where = f"cell {cell.task}, K={cell.draft_length}, {cell.concurrency} at a time"
        counts = [cell.num_steps, *cell.accepted_per_position]
        if counts != sorted(counts, reverse=True):
            yield f"{where}: more drafts accepted than were reached"
        if len(cell.accepted_per_position) != cell.draft_length:
            yield f"{where}: {len(cell.accepted_per_position)} positions of acceptance"
        if cell.ended == "failed":
            yield f"{where}: it failed"
