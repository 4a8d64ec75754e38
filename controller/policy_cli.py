"""The commands that show, replay and simulate decisions."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from trt_mtp.errors import InputError

_FILE = click.Path(path_type=Path, dir_okay=False)
_profile_option = click.option(
    "--profile", type=_FILE, help="Calibrated policy file.  [default: published values]"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random choice."
)


@click.command()
@click.argument("prompt", required=False)
@click.option("--request", type=click.File("rb"), help="A request as a JSON object; - is stdin.")
@click.option("--jsonl", type=click.File("rb"), help="One request per line; - is stdin.")
@click.option("--log", type=_FILE, help="A decision log, with --decision.")
@click.option("--decision", metavar="ID", help="Show this logged decision.")
@_profile_option
@click.option("--state", type=_FILE, help="What a gateway has learned.")
@click.option(
    "--draft-lengths", default="0,1,3,5", show_default=True, help="The hosted draft lengths."
)
@click.option(
    "--load",
    type=click.IntRange(0, 100_000),
    default=0,
    show_default=True,
    help="Requests in flight on each variant.",
)
@_seed_option
@_json_option
def explain(
    prompt: str | None,
    request: BinaryIO | None,
    jsonl: BinaryIO | None,
    log: Path | None,
    decision: str | None,
    profile: Path | None,
    state: Path | None,
    draft_lengths: str,
    load: int,
    seed: int,
    as_json: bool,
) -> None:
    """Show which variant a request would go to, and why.

    The request is a PROMPT, a JSON object (--request) or many (--jsonl), with `prompt` or
    `messages` and optionally tools, response_format, temperature, max_tokens, thinking, task,
    draft_length, session_id, tenant, latency_class, system and id. No server is needed.

    With --jsonl the exit code is 2 when a line is no request; the other lines are still decided.

    Example: trt-mtp explain "Write a Rust function that reverses a list" --load 4
    """
    from trt_mtp.controller.explain import (
        explain_jsonl,
        explain_line,
        find_decision,
        idle_variants,
        summary,
        to_text,
    )

    given = [prompt is not None, request is not None, jsonl is not None, decision is not None]
    if sum(given) != 1 or (decision is not None) != (log is not None):
        raise InputError("give one of: a PROMPT, --request, --jsonl, or --log with --decision")
    if decision is not None and log is not None:
        results: Iterable[dict[str, Any]] = [summary(find_decision(log, decision))]
    else:
        policy = _policy(profile, state, seed)
        variants = idle_variants(_lengths(draft_lengths), load)
        if jsonl is not None:
            results = explain_jsonl(policy, jsonl, variants)
        else:
            value = {"prompt": prompt} if request is None else _json_value(request)
            results = [summary(*explain_line(policy, value, variants))]
    if _print_all(results, as_json, to_text):
        sys.exit(2)


def _print_all(results: Iterable[dict[str, Any]], as_json: bool, to_text: Any) -> bool:
    """Print each result as it comes; whether one of them is an error."""
    failed = False
    for result in results:
        if "error" in result:
            failed = True
            click.echo(f"trt-mtp: {result['error']}", err=True)
        if as_json:
            click.echo(json.dumps(result, ensure_ascii=False))
        elif "error" not in result:
            click.echo(to_text(result) + "\n")
    return failed


def _policy(profile: Path | None, state: Path | None, seed: int) -> Any:
    from trt_mtp.controller.policy import Policy
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.state import read_state

    policy = Policy(read_profile(profile) if profile else None, seed=seed)
    if state is not None:
        read_state(state, policy)
    return policy


def _lengths(text: str) -> list[int]:
    """Draft lengths from `0,1,3`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 2 for part in parts):
        raise InputError(f"--draft-lengths is {text!r}: expected whole numbers like 0,1,3")
    lengths = sorted(int(part) for part in parts)
    if len(set(lengths)) != len(lengths):
        raise InputError(f"--draft-lengths is {text!r}: a length is given twice")
    return lengths


def _json_value(file: BinaryIO) -> Any:
    try:
        return json.loads(file.read().decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the request is not JSON: {error}") from None


@click.command()
@click.argument("log", type=_FILE)
@click.option(
    "--policy",
    default="logged",
    show_default=True,
    help="logged (what was done), learned or heuristics.",
)
@_profile_option
@_seed_option
@_json_option
def replay(log: Path, policy: str, profile: Path | None, seed: int, as_json: bool) -> None:
    """Compare a decision log with the oracle, the best static length per load, and none.

    Ratios are throughput over the other's, with 95 % bootstrap intervals over requests.

    Example: trt-mtp replay decisions.jsonl --policy learned
    """
    from trt_mtp.controller.decision_log import read_log
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.replay import replay as replay_log

    read = read_profile(profile) if profile else None
    report = replay_log(read_log(log), policy=policy, profile=read, seed=seed)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{report['requests']} requests under policy {policy}: "
        f"{report['tokens_per_s']} tok/s per request, regret {report['regret']:.2%}"
    )
    for row in [{"task": "all", **report}, *report["tasks"]]:
        click.echo(f"{row['task']:<18}{row['requests']:>8}  " + "  ".join(_ratios(row)))


def _ratios(row: dict[str, Any]) -> Iterator[str]:
    for name in ("over_oracle", "over_best_static", "over_none"):
        if name in row:
            ratio = row[name]
            yield f"{name} {ratio['ratio']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


@click.group(invoke_without_command=True)
@click.option(
    "--mix",
    default="code-creative",
    show_default=True,
    help="code-creative, chat, agent, rag, or shares like coding=0.7,writing=0.3.",
)
@click.option(
    "--policy",
    "policies",
    default="none,static,heuristics,learned,oracle",
    show_default=True,
    help="Policies to compare.",
)
@click.option("--requests", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--fleet",
    default="0=1,1=1,3=1",
    show_default=True,
    help="Shares of the replicas by draft length.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Requests per second that arrive at the fleet.",
)
@click.option(
    "--arrivals", type=click.Choice(["poisson", "bursts"]), default="poisson", show_default=True
)
@_seed_option
@_json_option
@click.pass_context
def simulate(
    ctx: click.Context,
    mix: str,
    policies: str,
    requests: int,
    replicas: int,
    fleet: str,
    rate: float,
    arrivals: str,
    seed: int,
    as_json: bool,
) -> None:
    """Simulate a fleet of replicas at different draft lengths under several policies.

    `static` runs the fleet once at each of its lengths.

    Example: trt-mtp simulate --mix chat --rate 40 --fleet 0=1,1=2,3=3
    """
    if ctx.invoked_subcommand is not None:
        return
    from trt_mtp.controller.simulate import POLICIES, Settings, simulate_all
    from trt_mtp.controller.world import parse_mix
    from trt_mtp.files import nearest

    names = [name.strip() for name in policies.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InputError(f"--policy: {name!r} is unknown{nearest(name, POLICIES)}")
    settings = Settings(
        parse_mix(mix),
        names[0],
        requests,
        replicas,
        _shares(fleet),
        rate_per_s=rate,
        arrivals=arrivals,
        seed=seed,
    )
    results = list(simulate_all(settings, names))
    if as_json:
        rows = [result.to_json() for result in results]
        click.echo(json.dumps({"schema_version": 1, "results": rows}))
        return
    click.echo(
        f"{'policy':<12}{'fleet tok/s':>12}{'user tok/s':>12}{'p50 s':>8}{'p99 s':>8}  chosen"
    )
    for r in results:
        chosen = ", ".join(f"K={k} {share:.0%}" for k, share in r.chosen.items())
        click.echo(
            f"{r.policy:<12}{r.tokens_per_s:>12.0f}{r.user_tokens_per_s:>12.1f}"
            f"{r.latency_p50_s:>8.2f}{r.latency_p99_s:>8.2f}  {chosen}"
        )


def _shares(text: str) -> dict[int, float]:
    shares: dict[int, float] = {}
    for part in text.split(","):
        length, _, share = part.partition("=")
        try:
            shares[int(length)] = float(share or 1)
        except ValueError:
            raise InputError(f"--fleet: {part!r} should be like 3=0.5") from None
        if not 0 <= int(length) <= 8 or not 0 < shares[int(length)] < 1e9:
            raise InputError(f"--fleet: {part!r}: lengths are 0 to 8, shares more than 0")
    return shares


@simulate.command()
@click.argument("measurements", type=_FILE, required=False)
@click.argument("step_costs", type=_FILE, required=False)
@_seed_option
@_json_option
def check(measurements: Path | None, step_costs: Path | None, seed: int, as_json: bool) -> None:
    """Predict half of each source's published cells from the other half, and show the errors.

    Without files it reads the measurements that come with trt-mtp.

    Example: trt-mtp simulate check MEASUREMENTS.csv STEP_COSTS.csv --json
    """
    from trt_mtp.controller.measurements import MEASUREMENTS_PATH, STEP_COSTS_PATH
    from trt_mtp.controller.simulate_check import check as check_files

    report = check_files(measurements or MEASUREMENTS_PATH, step_costs or STEP_COSTS_PATH, seed)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{report['rows_predicted']} speedups predicted: median error "
        f"{report['median_abs_error']:.1%}, 90 % within {report['p90_abs_error']:.1%}; "
        f"best K within 1 in {_percent(report['best_k_within_1'])} of "
        f"{report['best_k_cells']} cells"
    )
    for row in report["per_source"]:
        click.echo(
            f"{row['rows_predicted']:>5}{row['median_abs_error']:>8.1%}"
            f"{row['p90_abs_error']:>8.1%}  {row['source']}"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


@simulate.command()
@click.option(
    "--requests",
    type=click.IntRange(600, 1_000_000),
    default=2000,
    show_default=True,
    help="Per mix and load; the first 500 are not scored.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True)
@_json_option
def regret(requests: int, seeds: int, as_json: bool) -> None:
    """Compare the learning policy with the oracle on published mixes at given loads.

    Example: trt-mtp simulate regret --seeds 3
    """
    from trt_mtp.controller.regret import report as regret_report

    def progress(line: str) -> None:
        click.echo(line, err=True)

    report = regret_report(requests, range(seeds), progress=progress)
    if as_json:
        click.echo(json.dumps(report))
        return
    keys = ("over_oracle", "over_best_static", "over_none", "over_schedule", "worst_task_over_none")
    click.echo(f"{'mix':<15}{'load':<12}" + "".join(f"{key[:16]:>18}" for key in keys))
    for row in report["scenarios"]:
        click.echo(f"{row['mix']:<15}{row['load']:<12}" + "".join(f"{row[k]:>18.3f}" for k in keys))
    for task, ratio in report["recovery_over_oracle"].items():
        click.echo(f"after 500 requests from reversed priors, {task}: {ratio:.3f} of the oracle")
