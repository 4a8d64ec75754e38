"""The `plan` command."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE, json_option, parsed, seed_option

if TYPE_CHECKING:
    from trt_mtp.controller.plan.plan import Plan
    from trt_mtp.controller.plan.traffic import Traffic

FORMATS = ("table", "json", "helm", "keda", "html")
MAX_LENGTH = 7


def _draft_lengths(option: str, text: str) -> tuple[int, ...]:
    from trt_mtp.build.draft_lengths import parse_draft_lengths

    return parse_draft_lengths(text, MAX_LENGTH)


def _fleet(option: str, text: str) -> dict[int, int]:
    fleet: dict[int, int] = {}
    for part in text.split(","):
        length, _, count = part.strip().partition("=")
        if not (length.isdecimal() and count.isdecimal() and len(length) < 3 and len(count) < 7):
            raise InputError(f"{option}: {part!r:.80} should be like 3=4, four replicas of K = 3")
        if int(length) in fleet:
            raise InputError(f"{option}: length {length} is given twice")
        fleet[int(length)] = int(count)
    return fleet


@dataclass(frozen=True, slots=True)
class Given:
    """The options of one call."""

    deployment: str
    traffic: Path
    gpu: str | None
    gpus: int
    gpu_cost: float
    tp: int | None
    draft_lengths: Sequence[int]
    tpot_p99_ms: float | None
    ttft_p99_ms: float | None
    spare: int
    fleet: Mapping[int, int] | None
    seed: int


@click.command()
@click.argument("deployment", metavar="PROFILE|MODEL")
@click.option(
    "--traffic",
    type=FILE,
    required=True,
    help="Rates and lengths by task (JSON), a trace (JSON lines), or a decision log.",
)
@click.option("--gpu", help="GPU type, such as h100-80gb.  [default: the profile's]")
@click.option("--gpus", type=int, required=True, help="Number of GPUs available.")
@click.option(
    "--gpu-cost",
    type=float,
    default=1.0,
    show_default=True,
    help="Cost per GPU and hour, in any currency.",
)
@click.option("--tp", type=click.IntRange(1), help="GPUs per replica.  [default: as few as fit]")
@click.option(
    "--draft-lengths",
    callback=parsed(_draft_lengths),
    default="0,1,2,3,4,5",
    show_default=True,
    help="Draft lengths to choose among; a profile has its own.",
)
@click.option(
    "--tpot-p99-ms", type=float, help="Target for the 99th percentile of the time per output token."
)
@click.option(
    "--ttft-p99-ms", type=float, help="Target for the 99th percentile of the time to first token."
)
@click.option(
    "--spare",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="Replicas per draft length that may fail while the targets still hold (1 is N+1).",
)
@click.option(
    "--fleet", callback=parsed(_fleet), help="Present replicas by draft length, such as 0=2,3=4."
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True,
    help="Output format; html needs the report extra.",
)  # fmt: skip
@click.option("-o", "--output", type=FILE, help="Output file.  [default: stdout]")
@click.option(
    "--watch",
    "is_watching",
    is_flag=True,
    help="Plan repeatedly from a gateway's decision log; report when --fleet should change.",
)
@click.option(
    "--every-s",
    type=click.FloatRange(1, 86_400 * 31),
    default=3600.0,
    show_default=True,
    help="With --watch: seconds between plans, and length of the log that each reads.",
)
@seed_option
@json_option
def plan(
    form: str, output: Path | None, is_watching: bool, every_s: float, as_json: bool,
    **options: object,
) -> None:  # fmt: skip
    """Plan a fleet: how many replicas of which draft length, and whether a router pays.

    PROFILE is what `trt-mtp calibrate` wrote; `published` is the composite rig that trt-mtp ships.
    MODEL is a released model by name, such as qwen3.8-27b-fp8: nothing is downloaded, and step
    times are a roofline prior. The plan is the cheapest fleet whose simulated percentiles hold the
    targets, and one variant without a router wherever that costs at most 2% more. Exit code 2 if
    the targets can't be met.

    With --watch it prints a sentence when two plans in a row want another fleet than --fleet, until
    Ctrl-C or SIGTERM. It changes nothing by itself.

    Example: trt-mtp plan qwen3.8-27b-fp8 --traffic traffic.json --gpu h100-80gb --gpus 16
    """
    from trt_mtp.extras import require_extras
    from trt_mtp.files import write_atomic

    form = "json" if as_json else form
    require_extras("trt-mtp plan", "plan", *(("report",) if form == "html" else ()))
    given = Given(**options)  # type: ignore[arg-type]
    if is_watching:
        _watch(given, every_s, as_json)
    text = _rendered(_planned(given), form)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        write_atomic(output, text)
        click.echo(f"wrote {output}", err=True)


def _planned(given: Given) -> "Plan":
    from trt_mtp.controller.plan.traffic import read_traffic

    _check_numbers(given)
    return _plan_for(given, read_traffic(given.traffic))


def _plan_for(given: Given, traffic: "Traffic") -> "Plan":
    from trt_mtp.controller.plan.modes import Targets
    from trt_mtp.controller.plan.plan import Wishes, make_plan
    from trt_mtp.controller.plan.sources import deployment_of

    deployment = deployment_of(
        given.deployment, traffic, given.gpu, given.tp, given.draft_lengths
    )  # fmt: skip
    if given.gpus < deployment.gpus_per_replica:
        raise InputError(
            f"--gpus {given.gpus}: one replica of {deployment.name} takes "
            f"{deployment.gpus_per_replica} of {deployment.machine}"
        )
    wishes = Wishes(
        Targets(given.tpot_p99_ms, given.ttft_p99_ms), given.gpus, given.gpu_cost, given.spare,
        given.fleet, given.seed,
    )  # fmt: skip
    return make_plan(deployment, traffic, wishes)


def _watch(given: Given, every_s: float, as_json: bool) -> NoReturn:
    from trt_mtp.controller.plan.watch import watch

    _check_numbers(given)
    if not given.fleet or not sum(given.fleet.values()):
        raise InputError("--watch compares with what runs: give it as --fleet, such as 0=2,3=4")

    def say(advice: str) -> None:
        click.echo(json.dumps({"schema_version": 1, "advice": advice}) if as_json else advice)

    note = partial(click.echo, err=True)
    watch(given.traffic, every_s, given.fleet, partial(_plan_for, given), say, note)
    raise AssertionError("it ends by a signal alone")


def _check_numbers(given: Given) -> None:
    if given.gpus < 1:
        raise InputError(f"--gpus {given.gpus}: a fleet needs at least one")
    if given.gpus > 1_000_000:
        raise InputError(f"--gpus {given.gpus}: expected at most 1000000")
    for option, value in (
        ("--gpu-cost", given.gpu_cost),
        ("--tpot-p99-ms", given.tpot_p99_ms),
        ("--ttft-p99-ms", given.ttft_p99_ms),
    ):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{option} {value:g}: expected a number above 0")


def _rendered(plan: "Plan", form: str) -> str:
    from trt_mtp.controller.plan import data

    if form == "html":
        from trt_mtp.controller.plan.page import html

        return html(plan)
    if form == "table":
        from trt_mtp.controller.plan.text import to_text

        return to_text(plan)
    if form == "json":
        return json.dumps(data.to_json_value(plan))
    return data.helm_values(plan) if form == "helm" else data.keda(plan)
