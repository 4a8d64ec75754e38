"""The screen of `trt-mtp rollout status --watch`: actions, the step now, and the gates."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trt_mtp.controller.rollout.actions import Pause, Route
from trt_mtp.controller.rollout.gates import GateResult
from trt_mtp.controller.rollout.memory_gate import sentence
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.store import Event

if TYPE_CHECKING:
    from trt_mtp.controller.rollout.control import Status

NOW = {"do": "now", "undo": "undoing"}
LINE = "  {:<34}{:<14}{:>9}"
MIN_ACTIONS = 4  # lines of actions even if the gates have more to say than the screen has room


def screen(
    seen: "Status",
    events: Sequence[Event],
    spec: RolloutSpec,
    now: float,
    *,
    width: int = 80,
    height: int = 24,
) -> str:
    """One screen of at most `height` - 1 lines; `now` is Unix time, `events` the history."""
    head, gates = _head(seen, width), _gates(seen, width)
    done, to_come = _past(events, now), _to_come(events, spec) if _goes_on(seen) else []
    room = max(height - 1 - len(head) - len(gates), MIN_ACTIONS)
    kept = to_come[: max(room - len(done), room // 2)]
    past = done[max(len(done) + len(kept) - room, 0) :]
    lines = [*head, *past, *kept, *gates][: height - 1]
    return "\n".join(line[:width].rstrip() for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")


def _goes_on(seen: "Status") -> bool:
    return seen.rollout.direction == "forward" and not seen.rollout.phase.is_completed


def _head(seen: "Status", width: int) -> list[str]:
    rollout, progress = seen.rollout, seen.progress
    who = f"{seen.holder} is at work" if seen.holder else "no process is at work"
    lines = [f"{rollout.name}: {rollout.phase}   {who}", *_wrapped(rollout.reason, width)]
    if progress and not rollout.phase.is_completed:
        lines.append(f"{progress['step']}: {progress['num_requests']:,} requests of the canary")
    return [*lines, ""]


def _past(events: Sequence[Event], now: float) -> list[str]:
    """A line per action that was begun, in order, each with how long it took."""
    lines: list[str] = []
    begun: Event | None = None
    for event in events:
        if event.stage in NOW:
            begun = event
        elif begun is not None and begun.action == event.action:
            lines.append(LINE.format(event.action, event.stage, _span(event.at - begun.at)))
            begun = None
    if begun is not None:
        lines.append(LINE.format(begun.action, NOW[begun.stage], _span(now - begun.at)))
    return lines


def _to_come(events: Sequence[Event], spec: RolloutSpec) -> list[str]:
    """The steps of the file that were not begun."""
    begun = {event.action for event in events if event.stage == "do"}
    names = [
        Pause(number).name if step.pause else Route(step, number).name
        for number, step in enumerate(spec.how.steps)
    ]
    return [LINE.format(name, "to come", "") for name in names if name not in begun]


def _gates(seen: "Status", width: int) -> list[str]:
    gates = [GateResult(**gate).sentence() for gate in seen.progress.get("gates", ())]
    gates += [sentence(gate) for gate in seen.progress.get("memory", ())]
    lines = [line for gate in gates for line in _wrapped(gate, width)]
    return ["", *lines] if lines else []


def _span(seconds: float) -> str:
    """Such as `1:05:09`, or `12 s`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
