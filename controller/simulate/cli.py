"""The commands that simulate a fleet, and what routing loses against an oracle."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE, json_option, parsed, seed_option

if TYPE_CHECKING:
    from trt_mtp.controller.simulate.arrivals import Trace
    from trt_mtp.controller.simulate.simulate import Result

MAX_LENGTH = 8  # acceptance is modeled up to here


def _mix(option: str, text: str) -> dict[str, float]:
    from trt_mtp.controller.mix import parse_mix
    from trt_mtp.controller.simulate.workload import MIXES

    return parse_mix(text, MIXES)


def _policies(option: str, text: str) -> list[str]:
    from trt_mtp.controller.simulate.simulate import POLICIES
    from trt_mtp.files import nearest

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InputError(
                f"{option}: {name!r} is unknown{nearest(name, POLICIES)} "
                f"(known: {', '.join(POLICIES)})"
            )
    return names


def _schedule(option: str, text: str) -> dict[int, int]:
    from trt_mtp.build.trtllm_config import parse_schedule

    lengths = parse_schedule(text, option)
    if max(lengths.values()) > MAX_LENGTH:
        raise InputError(f"{option} {text!r}: draft lengths are at most {MAX_LENGTH}")
    return lengths


def _shares(option: str, text: str) -> dict[int, float]:
    shares: dict[int, float] = {}
    for part in text.split(","):
        text_length, _, text_share = part.partition("=")
        try:
            length, share = int(text_length), float(text_share or 1)
        except ValueError:
            raise InputError(f"{option}: {part!r} should be like 3=0.5") from None
        if not 0 <= length <= MAX_LENGTH or not 0 < share < 1e9:
            raise InputError(
                f"{option}: {part!r}: lengths are 0 to {MAX_LENGTH}, shares more than 0"
            )
        if length in shares:
            raise InputError(f"{option}: length {length} is given twice")
        shares[length] = share
    return shares


@click.group(invoke_without_command=True)
@click.option(
    "--mix",
    callback=parsed(_mix),
    default="code-creative",
    show_default=True,
    help="code-creative, chat, agent, rag, or shares like coding=0.7,writing=0.3.",
)
@click.option(
    "--policy",
    "policies",
    callback=parsed(_policies),
    default="none,static,schedule,heuristics,learned,oracle",
    show_default=True,
    help="Policies to compare.",
)
@click.option(
    "--requests",
    "num_requests",
    type=click.IntRange(1),
    help="How many arrive.  [default: 20000, or all of a trace]",
)
@click.option("--replicas", "num_replicas", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--fleet",
    "shares",
    callback=parsed(_shares),
    default="0=1,1=1,3=1",
    show_default=True,
    help="Shares of the replicas by draft length.",
)
@click.option(
    "--schedule",
    callback=parsed(_schedule),
    default="4:3,8:2,1024:1",
    show_default=True,
    help="Draft lengths of policy `schedule` by the largest batch that each is for.",
)
@click.option(
    "--scheduled",
    "is_scheduled",
    is_flag=True,
    help="The replicas of --fleet follow --schedule too, each up to its length.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Requests per second that arrive at the fleet.  [default: 20]",
)
@click.option(
    "--prompt-tokens",
    type=click.FloatRange(0, 10_000_000),
    default=0,
    show_default=True,
    help="Mean prompt tokens per request, read in chunks beside the answers; 0 leaves prompts out.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "bursts", "trace"]),
    help="[default: poisson, or trace with --trace]",
)
@click.option(
    "--trace",
    type=FILE,
    help="Arrival times: seconds, one a line; JSON lines with time_s and task; or a decision log.",
)
@seed_option
@json_option
@click.pass_context
def simulate(
    ctx: click.Context,
    /,
    policies: list[str],
    num_requests: int | None,
    rate: float | None,
    arrivals: str | None,
    trace: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Simulate a fleet under different routing policies.

    `static` runs the fleet once at each of its lengths. `schedule` gives every replica an engine
    whose draft length follows its own batch size, as TensorRT-LLM's draft_len_schedule does. With
    --scheduled the replicas that heuristics, learned and oracle choose among do so as well, as
    `trt-mtp build --draft-len-schedule` makes them. A trace's requests have its tasks, else those
    of --mix.

    Example: trt-mtp simulate --mix chat --rate 40 --fleet 0=1,1=2,3=3
    """
    if ctx.invoked_subcommand is not None:
        return
    from trt_mtp.controller.simulate.simulate import Settings, simulate_all

    if rate is not None and not rate < math.inf:
        raise InputError(f"--rate {rate:g}: expected a finite number")
    read = _trace(arrivals, trace, rate)
    settings = Settings(
        num_requests=num_requests or (20_000 if read is None else len(read)),
        rate_per_s=rate or 20.0,
        arrivals=arrivals or "poisson",
        trace=read,
        **values,
    )
    results = simulate_all(settings, policies)
    if as_json:
        rows = [result.to_json() for result in results]
        click.echo(json.dumps({"schema_version": 1, "results": rows}))
    else:
        _print_results(results)


def _print_results(results: "Iterable[Result]") -> None:
    head = f"{'policy':<12}{'fleet tok/s':>12}{'user tok/s':>12}{'p50 s':>8}{'p99 s':>8}  chosen"
    for i, r in enumerate(results):
        if i == 0:
            click.echo(head)
        chosen = ", ".join(f"K={k} {share:.0%}" for k, share in r.chosen.items())
        click.echo(
            f"{r.policy:<12}{r.tokens_per_s:>12.0f}{r.user_tokens_per_s:>12.1f}"
            f"{r.latency_p50_s:>8.2f}{r.latency_p99_s:>8.2f}  {chosen}"
        )


def _trace(arrivals: str | None, path: Path | None, rate: float | None) -> "Trace | None":
    """The trace of --trace; None without one. Raises InputError for options that exclude it."""
    if path is None:
        if arrivals == "trace":
            raise InputError("--arrivals trace: say which with --trace FILE")
        return None
    if arrivals not in (None, "trace"):
        raise InputError(f"--trace and --arrivals {arrivals}: give one of them")
    if rate is not None:
        raise InputError("--trace and --rate: a trace has its own rate")
    from trt_mtp.controller.simulate.arrivals import Trace

    return Trace(path)


@simulate.command()
@click.option(
    "--requests",
    type=click.IntRange(600, 1_000_000),
    default=2000,
    show_default=True,
    help="Requests per mix and load; the first 500 are not scored.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Runs per mix and load, each with another seed.",
)
@json_option
def regret(requests: int, seeds: int, as_json: bool) -> None:
    """Compare the learning policy with the oracle on published mixes at given loads.

    Example: trt-mtp simulate regret --seeds 3
    """
    from trt_mtp.controller.simulate.regret import report as regret_report

    def progress(line: str) -> None:
        click.echo(line, err=True)

    report = regret_report(requests, range(seeds), progress=progress)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_regret(report)


def _print_regret(report: Mapping[str, Any]) -> None:
    titles = {
        "over_oracle": "oracle", "over_best_static": "best static", "over_none": "none",
        "over_schedule": "schedule", "worst_task_over_none": "none, worst task",
    }  # fmt: skip
    click.echo("throughput of the learned policy over that of")
    click.echo(f"{'mix':<15}{'load':<12}" + "".join(f"{t:>18}" for t in titles.values()))
    for row in report["scenarios"]:
        ratios = "".join(f"{row[key]:>18.3f}" for key in titles)
        click.echo(f"{row['mix']:<15}{row['load']:<12}{ratios}")
    for task, ratio in report["recovery_over_oracle"].items():
        click.echo(f"after 500 requests from reversed priors, {task}: {ratio:.3f} of the oracle")
