"""The differences of two profiles, and the contradictions within one."""

from collections.abc import Iterator

from trt_mtp.controller.calibration import Calibration
from trt_mtp.controller.profile import Profile, differing_parts

LARGEST_STEP = 1.5  # of R between neighboring draft lengths per drafted token: more is unlikely


def diff(before: Profile, after: Profile) -> Iterator[str]:
    """A line for each difference; none for equal profiles."""
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


def findings(profile: Profile) -> Iterator[str]:
    """A line for each contradiction in a profile."""
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
