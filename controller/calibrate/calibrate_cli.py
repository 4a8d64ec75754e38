"""The `calibrate` command."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE, FOLDER, parsed, profile_out, temperature_option
from trt_mtp.serve.hosts import require_target
from trt_mtp.terminal import say

if TYPE_CHECKING:
    from trt_mtp.controller.profile import Profile

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
UNDECIDED = 3  # exit code: the profile is written, a choice is open
EMBEDDED_BUDGET = "3m"


def words(option: str, text: str) -> tuple[str, ...]:
    """`a,b` as names; raises InputError for an empty one."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise InputError(f"{option} {text!r}: expected names with commas between them")
    return parts


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers from 1 on; raises InputError."""
    parts = words(option, text)
    if not all(re.fullmatch(r"[1-9]\d{0,4}", part) for part in parts):
        raise InputError(f"{option} {text!r}: expected numbers from 1 on, as in 1,2,4,8")
    return tuple(int(part) for part in parts)


def seconds(option: str, text: str) -> float:
    """`90s`, `10m` or `2h` in seconds; raises InputError.

    >>> seconds("--budget", "10m")
    600.0
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError(f"{option} {text!r}: expected a time such as 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2]]


tasks_option = click.option(
    "--tasks",
    metavar="TASK,…",
    callback=parsed(words),
    help="Tasks to run, comma-separated.  [default: all of the prompt set]",
)

openai_key_option = click.option(
    "--openai-key-file",
    type=FILE,
    help="File with the API key of the servers of --openai.  [default: $OPENAI_API_KEY]",
)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--url", metavar="HOST:PORT", help="gRPC address of the Triton server to measure.")
@click.option(
    "--embedded",
    is_flag=True,
    help="Build, serve and measure CHECKPOINT on this machine instead of a server.",
)
@click.option(
    "--openai",
    "openai_urls",
    multiple=True,
    metavar="K=URL",
    help="Base URL of the server that drafts K tokens, where servers speak OpenAI's API; once for "
    "each draft length, 0 among them.",
)
@click.option(
    "--openai-restart",
    metavar="COMMAND",
    help="With --openai and one server for all draft lengths: shell command that restarts it at "
    "draft length {k} and ends. Each batch then takes a restart.",
)
@openai_key_option
@click.option(
    "--model",
    help="Model name that clients use; with --openai, {k} in it is the draft length.  [default: "
    "qwen_mtp; --openai: the server's only one]",
)
@click.option(
    "--variants",
    metavar="K0,K1,…",
    callback=parsed(words),
    help="Names of the variants to measure.  [default: all hosted]",
)
@click.option(
    "--concurrency",
    "concurrencies",
    metavar="N,N,…",
    callback=parsed(numbers),
    help="Concurrencies to measure.  [default: 1,2,4,8,16 if they fit]",
)
@tasks_option
@click.option(
    "--prompts",
    metavar="FILE",
    help="Prompt set: JSON lines, a Spec-Bench or SPEED-Bench file, or `shipped`.  [default: "
    "shipped; --embedded: CHECKPOINT/prompts.jsonl]",
)
@profile_out(
    "Profile to write. Its .journal lets an interrupted run resume.",
    default="profile.json",
    show_default=True,
)
@click.option(
    "--budget",
    "budget_s",
    metavar="TIME",
    callback=parsed(seconds),
    help="Maximum measuring time, such as 90s, 10m or 2h.  "
    f"[default: 10m; --embedded: {EMBEDDED_BUDGET}]",
)
@click.option(
    "--wait",
    "wait_s",
    metavar="TIME",
    callback=parsed(seconds),
    default="5m",
    show_default=True,
    help="Maximum time for a lost server to return.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Random seed, also of sampling.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    help="Maximum output tokens per answer; overrides the prompt set.",
)
@temperature_option
@click.option(
    "--all-cells",
    is_flag=True,
    help="Measure every task, draft length and load instead of a planned subset.",
)
@click.option(
    "--context",
    "context_tokens",
    metavar="TOKENS",
    type=click.IntRange(0, 10_000_000),
    default=0,
    show_default=True,
    help="Also measure, in two more batches, what prompts of about this many tokens cost per step; "
    "0 leaves that out.",
)
@click.option(
    "--prior",
    metavar="PROFILE",
    type=FILE,
    help="Profile whose step costs the planning begins with, such as one that `trt-mtp profile "
    "prior` writes for a model and a GPU. Choices are better where the budget is short.",
)
@click.option(
    "--engines",
    type=FOLDER,
    default="engines",
    show_default=True,
    help="With --embedded: directory of the variants; missing ones are built there.",
)
@click.option(
    "--draft-lengths",
    default="0,1,2,3,5",
    show_default=True,
    help="With --embedded: draft lengths to build, comma-separated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def calibrate(
    checkpoint: str | None,
    url: str | None,
    embedded: bool,
    openai_urls: tuple[str, ...],
    openai_key_file: Path | None,
    prompts: str | None,
    engines: Path,
    draft_lengths: str,
    as_json: bool,
    **values: Any,
) -> int:
    """Measure variants per task and load, and write a profile for the gateway.

    Every draft length is compared with no speculation on the same prompts, interleaved. Run the
    same command again to go on after an interruption, or with a larger --budget. A batch in which
    the server is lost is measured again when it is back.

    Exit code 0 if every choice is decided; 1 if the server doesn't come back or nothing could be
    measured; 3 if the profile was written and a choice is undecided.

    Example: trt-mtp calibrate --url 127.0.0.1:8101 --budget 10m -o profile.json

    Example: trt-mtp calibrate --openai 0=http://gpu0:8000/v1 --openai 3=http://gpu1:8000/v1

    Example: trt-mtp calibrate --embedded
    """
    if [bool(url), embedded, bool(openai_urls)].count(True) != 1:
        raise InputError(
            "name the server with --url, or with --openai where servers speak OpenAI's API, or let "
            "--embedded build and serve one here"
        )
    if url:
        require_target(url, "127.0.0.1:8101")
    if values["openai_restart"] and not openai_urls:
        raise InputError("--openai-restart is for the server of --openai")
    if openai_urls and values["variants"]:
        raise InputError("--variants is for --url; with --openai each server is a variant")
    if checkpoint and not embedded:
        raise InputError("CHECKPOINT is for --embedded; a server has its variants already")
    # numpy's threads gain nothing on small matrices, and spin on the cores that are measured
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from trt_mtp.controller.calibrate.calibrate import Options
    from trt_mtp.controller.calibrate.calibrate import calibrate as run
    from trt_mtp.controller.calibrate.embedded import run_embedded
    from trt_mtp.controller.calibrate.openai.rig import addresses
    from trt_mtp.controller.calibrate.openai.server import read_key
    from trt_mtp.controller.calibrate.prompt_sets import SHIPPED
    from trt_mtp.controller.profile import profile_json
    from trt_mtp.controller.profile_text import disturbance, is_decided, summary
    from trt_mtp.progress import shown
    from trt_mtp.serve.processes import terminate_as_interrupt

    given = {name: value for name, value in values.items() if value is not None}
    if openai_urls:
        given["openai"] = addresses("--openai", openai_urls)
        given["openai_key"] = read_key(openai_key_file, os.environ.get("OPENAI_API_KEY"))
    options = Options(url=url or "", prompts=prompts or SHIPPED, **given)
    if embedded and "budget_s" not in given:
        options = replace(options, budget_s=seconds("--budget", EMBEDDED_BUDGET))
    with terminate_as_interrupt(), shown("s") as meter:
        if embedded:
            profile = run_embedded(checkpoint, draft_lengths, engines, prompts, options, meter)
        else:
            profile = run(options, meter)
    assert profile.calibration is not None
    if as_json:
        click.echo(profile_json(profile), nl=False)
    else:
        say("\n".join([summary(profile), *_settings(profile)]))
        click.echo(f"written to {options.out}", err=True)
        if disturbance(profile.calibration):
            click.echo(f"to measure again, remove {options.journal} first", err=True)
    return 0 if is_decided(profile.calibration) else UNDECIDED


def _settings(profile: "Profile") -> list[str]:
    """The settings of the servers that were measured, if their kind has some."""
    from trt_mtp.controller.calibrate.server_settings import SETTINGS, settings_for

    kind = profile.measured_on.get("server", "")
    if kind not in SETTINGS:
        return []
    lines = settings_for(kind, profile)
    return ["", f"settings of {kind}, for all tasks alike:", *(f"  {line}" for line in lines)]
