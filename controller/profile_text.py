"""A profile as text: the advice, then the table behind it."""

from collections.abc import Iterator, Sequence

from trt_mtp.controller.calibration import (
    ALLOWED_LOSS,
    BestLength,
    Calibration,
    Interval,
    Recommendation,
)
from trt_mtp.controller.profile import Profile

TASK_WIDTH, CELL_WIDTH = 18, 12
LOADS_IN_80 = (80 - TASK_WIDTH) // CELL_WIDTH
MANY_DISTURBED = 0.03  # of the answers; on a quiet machine it is one in a thousand


def summary(profile: Profile, *, wide: bool = False) -> str:
    """A profile for people; its table has 80 columns, or with `wide` all of it in one."""
    calibration = profile.calibration
    if calibration is None:
        source = profile.notes or "its numbers are published or typed in"
        return "\n".join([f"no calibration: {source}", *_head(profile)])
    lines = [conclusion(calibration), "", *_head(profile)]
    if calibration.recommendation is not None:
        so_far = [] if is_decided(calibration) else ["so far, not decided:"]
        lines += ["", *so_far, *_advice(calibration.recommendation), ""]
        lines += _table(calibration, calibration.recommendation, wide=wide)
    lines += ["", *_quality(calibration), *_context(profile, calibration)]
    return "\n".join(lines)


def conclusion(calibration: Calibration) -> str:
    """What a calibration decides: its verdict, if what was measured can be trusted."""
    return disturbance(calibration) or verdict(calibration.recommendation)


def is_decided(calibration: Calibration) -> bool:
    """Whether `conclusion` is one that a script may act on."""
    advice = calibration.recommendation
    return advice is not None and not advice.num_open and not disturbance(calibration)


def verdict(advice: Recommendation | None) -> str:
    """What a calibration decides, as one sentence; it recommends nothing that it doesn't know."""
    if advice is None:
        return "UNDECIDED: nothing to compare with; draft length 0 was not measured"
    if advice.num_open:
        losses = [best.may_lose for best in advice.best if best.may_lose is not None]
        return (
            f"UNDECIDED: {advice.num_open} of {len(advice.best)} choices may lose more than "
            f"{ALLOWED_LOSS:.0%} against the best length, up to {max(losses):.1%}; run the same "
            "command again with a larger --budget"
        )
    if not any(best.draft_length for best in advice.best):
        return "DECIDED: don't speculate; no draft length is faster than K=0 for any task and load"
    if advice.hold_one:
        return f"DECIDED: host one variant, K={advice.draft_length}; routing gains nothing sure"
    return (
        f"DECIDED: route by task and load, {show(advice.routed_speedup)} times as fast as the best "
        f"single length, K={advice.draft_length}"
    )


def disturbance(calibration: Calibration) -> str:
    """Why nothing is decided if much of what was measured was disturbed; empty if it was not."""
    text = calibration.environment.get("disturbed_answers", "0")
    num_disturbed = int(text) if text.isdecimal() else 0
    num_answers = sum(cell.num_requests for cell in calibration.cells)
    if num_disturbed <= MANY_DISTURBED * num_answers:
        return ""
    return (
        f"UNDECIDED: {num_disturbed} of {num_answers} answers were disturbed, much faster or "
        "slower than their like; measure again while the machine does nothing else"
    )


def _head(profile: Profile) -> Iterator[str]:
    yield f"fingerprint {profile.fingerprint or 'none: fits anything'}"
    for key, value in sorted(profile.measured_on.items()):
        yield f"  {key}: {value}"


def _advice(advice: Recommendation) -> Iterator[str]:
    if advice.draft_length:
        yield (
            f"best single draft length: K={advice.draft_length}, {show(advice.speedup)} times as "
            f"fast as without speculation at the lowest load, all tasks alike"
        )
    else:
        yield "best single choice: no speculation (K=0)"
    yield f"routing by task and load: {show(advice.routed_speedup)} times as fast as that alone"
    if advice.hold_one and not advice.num_open:
        yield "that is less than its uncertainty: host one variant"


def _table(calibration: Calibration, advice: Recommendation, *, wide: bool) -> Iterator[str]:
    loads, columns = calibration.concurrencies, len(calibration.concurrencies)
    if not wide:
        columns = LOADS_IN_80
    for first in range(0, len(loads), columns):
        yield from _part(calibration, advice, loads[first : first + columns], wide=wide)
        yield ""
    yield "~: another draft length can't be told from it by these numbers"
    yield "speedups are estimates from all answers, of the text after the first token"
    if not wide and any(one.concurrency is not None for one in calibration.crossovers):
        yield "--wide of `trt-mtp profile show` has the loads from which each length loses"


def _part(
    calibration: Calibration, advice: Recommendation, loads: Sequence[int], *, wide: bool
) -> Iterator[str]:
    """The advice at some loads, a line per task."""
    chosen = {(best.task, best.concurrency): best for best in advice.best}
    head = f"{'task':<{TASK_WIDTH}}" + "".join(f"{f'at {load}':>{CELL_WIDTH}}" for load in loads)
    yield head + ("  loses from" if wide else "")
    for task in dict.fromkeys(best.task for best in advice.best):
        cells = "".join(f"{_cell(chosen[task, load]):>{CELL_WIDTH}}" for load in loads)
        limits = ", ".join(_limits(calibration, task)) if wide else ""
        yield f"{task:<{TASK_WIDTH}}{cells}  {limits}".rstrip()


def _cell(best: BestLength) -> str:
    return f"K={best.draft_length}{'~' if best.ties else ''} {best.speedup.value:.2f}x"


def _limits(calibration: Calibration, task: str) -> Iterator[str]:
    for one in calibration.crossovers:
        if one.task == task and one.concurrency is not None:
            yield f"K={one.draft_length}: {one.concurrency:.3g}"


def _context(profile: Profile, calibration: Calibration) -> Iterator[str]:
    price = profile.context_cost
    if price is not None:
        yield (
            f"1,000 more tokens in the caches cost a step {1e6 * price.plain_s:.2g} ms, and "
            f"{1e6 * price.draft_s:.2g} ms per draft"
        )
    elif "context_not_measured" in calibration.environment:
        yield f"context cost not measured: {calibration.environment['context_not_measured']}"


def _quality(calibration: Calibration) -> Iterator[str]:
    advice = calibration.recommendation
    known = {best.task for best in advice.best} if advice else set()
    num_predicted = sum(task in known for task, _, _ in calibration.unmeasured)
    unknown = len(calibration.unmeasured) - num_predicted
    yield (
        f"{len(calibration.cells)} cells measured in {calibration.duration_s:.0f} s with "
        f"{calibration.prompts}, {num_predicted} predicted from them"
        + (f", {unknown} left unknown" if unknown else "")
    )
    if advice is not None:
        yield from _certainty(advice)
    if "not_told" in calibration.environment:
        yield f"not told: {calibration.environment['not_told']}"
    if not any(cell.accepted_per_position and cell.num_steps for cell in calibration.cells):
        yield "speedups are as measured: without acceptance nothing is predicted"
    if calibration.prediction:
        quality = calibration.prediction
        yield (
            f"AL / R predicts each of {quality.num_cells} cells from the others within "
            f"{quality.median_abs_error:.1%} (median), {quality.p90_abs_error:.1%} (9 of 10)"
        )
    failed = [cell for cell in calibration.cells if cell.ended == "failed"]
    for cell in failed:
        yield f"failed: {cell.task} at K={cell.draft_length}, {cell.concurrency} at a time"


def _certainty(advice: Recommendation) -> Iterator[str]:
    losses = [best.may_lose for best in advice.best if best.may_lose is not None]
    if losses:
        num_settled = sum(best.is_settled for best in advice.best)
        yield (
            f"{num_settled} of {len(losses)} choices lose at most {ALLOWED_LOSS:.0%} against the "
            f"best length (95%)"
        )
        if num_settled < len(losses):
            yield f"the least certain may lose {max(losses):.1%}"


def show(value: Interval) -> str:
    """`1.42 (1.38-1.47)`.

    >>> show(Interval(1.416, 1.38, 1.47))
    '1.42 (1.38-1.47)'
    """
    return f"{value.value:.2f} ({value.low:.2f}-{value.high:.2f})"
