"""`trt-mtp rollout`: the commands that put something else into production, and back."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.files import to_json
from trt_mtp.live_screen import draw
from trt_mtp.options import FILE, json_option, wide_option
from trt_mtp.printable import one_line
from trt_mtp.terminal import fitted, say

if TYPE_CHECKING:
    from trt_mtp.controller.rollout.control import Status
    from trt_mtp.controller.rollout.spec import RolloutSpec

WATCH_S = 1.0
COLUMNS = 80
SPEC = click.argument("file", type=FILE)
WHY = click.option("--why", default="", help="Reason, recorded in the history.")
Command = Callable[..., None]


@click.group()
def rollout() -> None:
    """Roll out a variant, draft length or profile in steps, with automatic rollback.

    A rollout is one YAML FILE; its state lies where the file says, so every command can be killed
    and called again. Exit codes: 0 done, 1 failed, 2 bad input, 3 in progress, 4 aborted by a gate
    or a person, 5 inconclusive.

    Example: trt-mtp rollout start k5.yaml
    """


@rollout.command()
@SPEC
@json_option
def validate(file: Path, as_json: bool) -> None:
    """Validate the rollout file, and the variant or profile it names, without any server.

    Example: trt-mtp rollout validate k5.yaml
    """
    from trt_mtp.build.variant import read_variant
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.rollout.spec import read_spec

    spec = read_spec(file)
    if spec.what.variant is not None:
        read_variant(spec.what.variant)
    elif spec.what.profile is not None:
        read_profile(spec.what.profile)
    result = {"schema_version": 1, "name": spec.name, "digest": spec.digest, "valid": True}
    click.echo(to_json(result) if as_json else f"{file}: {spec.name} is valid", nl=not as_json)


@rollout.command()
@SPEC
@json_option
def plan(file: Path, as_json: bool) -> None:
    """Show what a rollout would change, what memory it needs and whom it affects.

    Example: trt-mtp rollout plan k5.yaml
    """
    _show_plan(file, as_json)


@rollout.command()
@SPEC
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option(
    "--again", is_flag=True, help="Restart an aborted or failed rollout from the first step."
)
@json_option
def start(file: Path, dry_run: bool, again: bool, as_json: bool) -> None:
    """Start a rollout, or resume an interrupted one, until it finishes or pauses.

    Example: trt-mtp rollout start k5.yaml --json
    """
    from trt_mtp.controller.rollout.control import start as begin
    from trt_mtp.controller.rollout.spec import read_spec

    if dry_run:
        _show_plan(file, as_json)
        return
    _finish(begin(read_spec(file), _say, again), as_json)


@rollout.command()
@SPEC
@click.option("--watch", is_flag=True, help="Show it live until the rollout finishes or pauses.")
@json_option
def status(file: Path, watch: bool, as_json: bool) -> None:
    """Show a rollout's status, also as the exit code.

    Example: trt-mtp rollout status k5.yaml --watch
    """
    from trt_mtp.controller.rollout.control import status as look
    from trt_mtp.controller.rollout.spec import read_spec

    spec = read_spec(file)
    seen = look(spec)
    # ends, because each step of the holder has an end
    while watch and seen.holder and not seen.rollout.phase.is_completed:
        _show_live(spec, seen)
        time.sleep(WATCH_S)
        seen = look(spec)
    _finish(seen, as_json)


@rollout.command()
@SPEC
@json_option
def explain(file: Path, as_json: bool) -> None:
    """Show what the gates have measured and what they still need.

    Example: trt-mtp rollout explain k5.yaml
    """
    from trt_mtp.controller.rollout.control import status as look
    from trt_mtp.controller.rollout.gate_table import gate_table
    from trt_mtp.controller.rollout.gates import GateResult
    from trt_mtp.controller.rollout.memory_gate import not_gated, sentence
    from trt_mtp.controller.rollout.spec import read_spec
    from trt_mtp.controller.rollout.verdict import verdict

    spec = read_spec(file)
    seen = look(spec)
    lines = list(gate_table([GateResult(**gate) for gate in seen.progress.get("gates", ())]))
    lines = lines or ["the gates have seen no request yet"]
    lines += [sentence(gate) for gate in seen.progress.get("memory", ())]
    lines += not_gated(spec.where.servers) if spec.what.variant else []
    text = "\n".join([_status_text(seen), verdict(seen, spec.how.gates.min_requests), *lines])
    click.echo(to_json(seen.to_json()) if as_json else fitted(text), nl=not as_json)


@rollout.command()
@SPEC
@json_option
def resume(file: Path, as_json: bool) -> None:
    """Resume a paused or inconclusive rollout.

    Example: trt-mtp rollout resume k5.yaml
    """
    from trt_mtp.controller.rollout.control import resume as go_on
    from trt_mtp.controller.rollout.spec import read_spec

    _finish(go_on(read_spec(file), _say), as_json)


@rollout.command()
@SPEC
@WHY
@json_option
def pause(file: Path, why: str, as_json: bool) -> None:
    """Pause at the current traffic split.

    Example: trt-mtp rollout pause k5.yaml --why "a look at the logs"
    """
    _steer(file, "pause", why, as_json)


@rollout.command()
@SPEC
@click.option("--full", is_flag=True, help="Skip all remaining steps and gates.")
@WHY
@json_option
def promote(file: Path, full: bool, why: str, as_json: bool) -> None:
    """Continue past a pause, or skip the current step.

    Example: trt-mtp rollout promote k5.yaml --full
    """
    _steer(file, "promote --full" if full else "promote", why, as_json)


@rollout.command()
@SPEC
@WHY
@json_option
def abort(file: Path, why: str, as_json: bool) -> None:
    """Send all traffic back to the stable side at once and roll back.

    Exit code 0 if that is done.

    Example: trt-mtp rollout abort k5.yaml --why "complaints"
    """
    seen = _steered(file, "abort", why)
    _print(seen, as_json)
    sys.exit(0 if seen.exit_code == 4 else seen.exit_code)


@rollout.command()
@SPEC
@json_option
def unlock(file: Path, as_json: bool) -> None:
    """Break the lock of a process that ended on another machine.

    A process that lives all the same stops at its next change. On this machine a lock goes with its
    process, and that of a living one is not broken.

    Example: trt-mtp rollout unlock k5.yaml
    """
    from trt_mtp.controller.rollout.control import unlock as break_lock
    from trt_mtp.controller.rollout.spec import read_spec

    holder = break_lock(read_spec(file))
    text = f"the lock of {holder} is broken" if holder else "no process had the lock"
    result = {"schema_version": 1, "broken": holder}
    click.echo(to_json(result) if as_json else text, nl=not as_json)


@rollout.command()
@SPEC
@wide_option
@json_option
def history(file: Path, wide: bool, as_json: bool) -> None:
    """Show who did what, when and why.

    Facts are cut at 80 columns; --wide and --json have them whole.

    Example: trt-mtp rollout history k5.yaml
    """
    from trt_mtp.controller.rollout.control import history as read
    from trt_mtp.controller.rollout.spec import read_spec

    events = [event.to_json() for event in read(read_spec(file))]
    if as_json:
        click.echo(to_json({"schema_version": 1, "events": events}), nl=False)
        return
    for event in events:
        head = f"{event['at'][:19]}Z  {event['who']}  {event['action']:<16} {event['stage']}"
        facts = f"{head}  {json.dumps(event['what']) if event['what'] else ''}".rstrip()
        if event["why"]:
            say(one_line(f"{head}  {event['why']}"))
        elif wide or len(facts) <= COLUMNS:
            click.echo(one_line(facts))
        else:
            click.echo(one_line(f"{facts[: COLUMNS - 1]}…"))


def _show_live(spec: "RolloutSpec", seen: "Status") -> None:
    """One screen on a terminal, a line elsewhere; both on stderr, for --json has stdout."""
    from trt_mtp.controller.rollout.control import history as events
    from trt_mtp.controller.rollout.watch import screen

    if not sys.stderr.isatty():
        _say(_status_text(seen))
        return
    size = shutil.get_terminal_size()
    shown = screen(seen, events(spec), spec, time.time(), width=size.columns, height=size.lines)
    draw(shown, err=True)


def _steer(file: Path, verb: str, why: str, as_json: bool) -> None:
    _finish(_steered(file, verb, why), as_json)


def _steered(file: Path, verb: str, why: str) -> "Status":
    from trt_mtp.controller.rollout.control import steer
    from trt_mtp.controller.rollout.spec import read_spec

    return steer(read_spec(file), verb, why, _say)


def _finish(seen: "Status", as_json: bool) -> None:
    _print(seen, as_json)
    sys.exit(seen.exit_code)


def _print(seen: "Status", as_json: bool) -> None:
    click.echo(to_json(seen.to_json()) if as_json else fitted(_status_text(seen)), nl=not as_json)


def _status_text(seen: "Status") -> str:
    rollout = seen.rollout
    parts = [f"{rollout.name}: {rollout.phase}"]
    if not rollout.phase.is_completed and seen.progress:
        parts.append(f"{seen.progress['step']}, {seen.progress['num_requests']} requests")
    if rollout.reason:
        parts.append(rollout.reason)
    if seen.holder and not rollout.phase.is_completed:  # else it has another rollout of the file
        parts.append(f"{seen.holder} is at work")
    return "; ".join(parts)


def _show_plan(file: Path, as_json: bool) -> None:
    from trt_mtp.controller.rollout.control import plan as make
    from trt_mtp.controller.rollout.plan import requests_per_minute
    from trt_mtp.controller.rollout.spec import read_spec

    spec = read_spec(file)
    planned = make(spec).to_json()
    rates = [requests_per_minute(gateway.decision_log) for gateway in spec.where.gateways]
    rate = sum(rate for rate in rates if rate) or None
    planned["requests_per_minute"] = rate
    for step in planned["steps"]:
        step["requests_per_minute"] = None if rate is None else rate * step["percent"] / 100
    click.echo(to_json(planned) if as_json else fitted(_plan_text(planned)), nl=not as_json)


def _plan_text(planned: dict[str, Any]) -> str:
    """The plan for people."""
    from trt_mtp.controller.rollout.memory_gate import sentence

    target, stable = planned["target"]["variants"], planned["stable"]["variants"]
    lines = [
        f"{planned['name']}: {', '.join(stable)} -> {', '.join(target)}, {planned['strategy']}"
    ]
    lines += [f"  {c['key']}: {c['old']} -> {c['new']}" for c in planned["changes"]]
    for need in planned["memory"]:
        limit = f" of {need['limit_bytes'] / 1e9:.2f}" if need["limit_bytes"] else ""
        lines.append(
            f"  memory, {need['step']}, {need['server']}: {need['num_bytes'] / 1e9:.2f}{limit} GB "
            f"({', '.join(need['variants'])}){'' if need['fits'] else '  DOES NOT FIT'}"
        )
    lines += [f"  {sentence(gate)}" for gate in planned["memory_gates"]]
    for step in planned["steps"]:
        rate = step["requests_per_minute"]
        affected = "" if not rate else f", about {rate:.1f} requests a minute"
        lines.append(f"  {step['step']}{affected}")
    return "\n".join([*lines, *(f"  note: {note}" for note in planned["notes"])])


def _say(text: str) -> None:
    say(text, err=True)
