"""The commands that show and replay decisions."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE, json_option, parsed, profile_option, seed_option
from trt_mtp.terminal import say

REPLAY_LINE = "{:<18}{:>8}{:>20}{:>17}{:>17}"


def _lengths(option: str, text: str) -> list[int]:
    """Draft lengths from `0,1,3`; raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 2 for part in parts):
        raise InputError(f"{option} is {text!r}: expected whole numbers like 0,1,3")
    lengths = sorted(int(part) for part in parts)
    if len(set(lengths)) != len(lengths):
        raise InputError(f"{option} is {text!r}: a length is given twice")
    return lengths


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--request", type=click.File("rb"), help="File with one request as a JSON object; - for stdin."
)
@click.option("--jsonl", type=click.File("rb"), help="File with one request per line; - for stdin.")
@click.option("--log", type=FILE, help="Decision log that --decision refers to.")
@click.option("--decision", metavar="ID", help="Id of a logged decision to show.")
@profile_option
@click.option("--state", type=FILE, help="State file of a gateway, with what it has learned.")
@click.option(
    "--draft-lengths",
    callback=parsed(_lengths),
    default="0,1,3,5",
    show_default=True,
    help="Hosted draft lengths, comma-separated.",
)
@click.option(
    "--load",
    type=click.IntRange(0, 100_000),
    default=0,
    show_default=True,
    help="Requests in flight per variant.",
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(0, 10_000_000),
    help="Tokens in the cache of each request in flight.  [default: as in the profile's tables]",
)
@seed_option
@json_option
def explain(log: Path | None, decision: str | None, as_json: bool, **given: Any) -> None:
    """Show which variant a request would go to, and why.

    The request is a PROMPT, a JSON object (--request) or many (--jsonl), with `prompt` or
    `messages` and optionally tools, response_format, temperature, max_tokens, thinking, task,
    draft_length, session_id, tenant, latency_class, system and id. Bodies of OpenAI's chat
    completions and of Triton's generate are such objects too. No server is needed.

    --log with --decision shows what was decided, what came of it, and the prompt where the gateway
    kept it (--log-prompts).

    With --jsonl the exit code is 2 when a line is no request; the other lines are still decided.

    Example: trt-mtp explain "Write a Rust function that reverses a list" --load 4
    """
    from trt_mtp.controller.explain import logged, to_text

    sources = [given["prompt"], given["request"], given["jsonl"], decision]
    if sum(s is not None for s in sources) != 1 or (decision is None) != (log is None):
        raise InputError("give one of: a PROMPT, --request, --jsonl, or --log with --decision")
    if decision is not None and log is not None:
        results: Iterable[dict[str, Any]] = [logged(log, decision)]
    else:
        results = _decided(**given)
    if _print_all(results, as_json, to_text):
        sys.exit(2)


def _decided(
    prompt: str | None,
    request: BinaryIO | None,
    jsonl: BinaryIO | None,
    profile: Path | None,
    state: Path | None,
    draft_lengths: list[int],
    load: int,
    context_tokens: int | None,
    seed: int,
) -> Iterable[dict[str, Any]]:
    """What a policy decides for the given request or requests."""
    from trt_mtp.controller.explain import (
        explain_jsonl,
        explain_line,
        idle_variants,
        request_value,
        summary,
    )

    policy = _policy(profile, state, seed)
    variants = idle_variants(draft_lengths, load, context_tokens)
    if jsonl is not None:
        return explain_jsonl(policy, jsonl, variants)
    value = {"prompt": prompt} if request is None else request_value(request.read())
    return [summary(*explain_line(policy, value, variants))]


def _print_all(results: Iterable[dict[str, Any]], as_json: bool, to_text: Any) -> bool:
    """Print each result as it comes; true if one of them is an error."""
    failed = False
    for result in results:
        if "error" in result:
            failed = True
            say(f"trt-mtp: {result['error']}", err=True)
        if as_json:
            click.echo(json.dumps(result))
        elif "error" not in result:
            say(to_text(result) + "\n")
    return failed


def _policy(profile: Path | None, state: Path | None, seed: int) -> Any:
    from trt_mtp.controller.policy import Policy
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.state import read_state

    policy = Policy(read_profile(profile) if profile else None, seed=seed)
    if state is not None:
        read_state(state, policy)
    return policy


@click.command()
@click.argument("log", type=FILE)
@click.option(
    "--policy",
    default="logged",
    show_default=True,
    help="Policy to replay: logged (what was done), learned or heuristics.",
)
@profile_option
@seed_option
@json_option
def replay(log: Path, policy: str, profile: Path | None, seed: int, as_json: bool) -> None:
    """Replay a decision log against the best possible, the best fixed and no draft length.

    Ratios are throughput over that of the best length for each request, of the best fixed one, and
    of no speculation, with 95% bootstrap intervals over requests.

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
    say(
        f"{report['requests']} requests under policy {policy}: "
        f"{report['tokens_per_s']} tok/s per request, regret {report['regret']:.2%}"
    )
    click.echo(REPLAY_LINE.format("task", "requests", "over best each", "over best K", "over none"))
    for row in [{"task": "all", **report}, *report["tasks"]]:
        click.echo(REPLAY_LINE.format(row["task"], row["requests"], *_ratios(row)).rstrip())


def _ratios(row: dict[str, Any]) -> Iterator[str]:
    """Throughput over the oracle's, the best fixed length's and no speculation's."""
    for name, digits in (("over_oracle", 3), ("over_best_static", 2), ("over_none", 2)):
        ratio = row.get(name)
        if ratio is None:
            yield "-"
            continue
        middle, low, high = (f"{ratio[key]:.{digits}f}" for key in ("ratio", "low", "high"))
        yield f"{middle} ({low}-{high})"
