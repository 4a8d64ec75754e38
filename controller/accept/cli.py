"""The `accept` command."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from trt_mtp.build.vllm_cli import vllm_python_option
from trt_mtp.controller.calibrate.calibrate_cli import seconds
from trt_mtp.errors import InputError
from trt_mtp.files import nearest
from trt_mtp.options import FILE, FOLDER, engine_option, json_option

if TYPE_CHECKING:
    from trt_mtp.controller.accept.record import Record
    from trt_mtp.controller.accept.step import EngineName, Options, Outcome

NAMES = ("doctor", "build", "verify", "serve", "smoke", "calibrate")
LARGEST_DRAFT_LENGTH = 16


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--draft-lengths",
    default="0,1,3",
    show_default=True,
    help="Draft lengths (K) to build: 0 and at least one other.",
)
@engine_option
@vllm_python_option
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default="acceptance",
    show_default=True,
    help="Directory of the record, the journal and the logs.",
)
@click.option(
    "--engines", type=FOLDER, help="Directory of the variants.  [default: OUTPUT/engines]"
)
@click.option("--skip", multiple=True, metavar="STEP", help="Skip a step; repeatable.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="STEP=TIME",
    help="Maximum time for a step, such as verify=20m; repeatable.",
)
@click.option(
    "--show", type=FILE, metavar="RECORD", help="Print an existing record and run nothing."
)
@json_option
def accept(
    checkpoint: str | None,
    draft_lengths: str,
    engine: str,
    vllm_python: Path | None,
    output: Path,
    engines: Path | None,
    skip: tuple[str, ...],
    budgets: tuple[str, ...],
    show: Path | None,
    as_json: bool,
) -> None:
    """Try the whole stack on this machine and write one record of the result.

    CHECKPOINT is a folder or the id of a model in the Hugging Face cache; the default is
    assets/qwen-mtp-tiny of the checkout. The steps are doctor, build, verify, serve, smoke
    (requests through a gateway, and a variant that is killed) and calibrate. The same command
    resumes: what passed is run again only if something that it depends on changed. record.json and
    record.md hold no prompt, token, path, host or user name. Exit code 0 if no step failed, 1 if
    one failed or was over its budget, 2 after bad input.

    Example: trt-mtp accept Qwen/Qwen3.8-27B-FP8 --budget verify=30m

    Example: trt-mtp accept --show acceptance/record.json
    """
    from trt_mtp.controller.accept.page import page_of
    from trt_mtp.controller.accept.record import read_record, record_json

    if show is not None:
        record = read_record(show)
        click.echo(record_json(record) if as_json else page_of(record), nl=False)
        return
    # numpy's threads gain nothing on small matrices, and spin on the cores that are measured
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    options = options_of(
        checkpoint, draft_lengths, engine, vllm_python, output, engines, skip, budgets
    )
    outcomes = run(options)
    record = write_record(options, outcomes)
    click.echo(record_json(record) if as_json else page_of(record), nl=False)
    sys.exit(code_of(outcomes))


def options_of(
    checkpoint: str | None,
    draft_lengths: str,
    engine: str,
    vllm_python: Path | None,
    output: Path,
    engines: Path | None,
    skip: Sequence[str],
    budgets: Sequence[str],
) -> "Options":
    """What was typed, checked before anything runs; raises InputError."""
    from trt_mtp.build.checkpoint import read_checkpoint
    from trt_mtp.build.cli import choose_engine
    from trt_mtp.build.draft_lengths import parse_draft_lengths
    from trt_mtp.build.hub import resolve_checkpoint
    from trt_mtp.controller.accept.step import Options
    from trt_mtp.controller.up import default_checkpoint
    from trt_mtp.extras import require_engine

    for name in skip:
        require_step("--skip", name)
    lengths = parse_draft_lengths(draft_lengths, LARGEST_DRAFT_LENGTH)
    if 0 not in lengths or len(lengths) < 2:
        raise InputError(
            f"--draft-lengths {draft_lengths}: an acceptance compares with no speculation; "
            "expected 0 and at least one other, as in 0,1,3"
        )
    chosen = choose_engine(engine)
    require_engine(chosen)
    found = read_checkpoint(resolve_checkpoint(checkpoint or default_checkpoint()))
    return Options(
        checkpoint=str(found.path),
        engine=cast("EngineName", chosen),
        draft_lengths=tuple(lengths),
        engines=engines or output / "engines",
        folder=output,
        vllm_python=vllm_python,
        skipped=frozenset(skip),
        budgets=parse_budgets(budgets),
    )


def require_step(option: str, name: str) -> None:
    """Raise InputError for a name that no step has."""
    if name not in NAMES:
        raise InputError(
            f"{option} {name!r} is not a step{nearest(name, NAMES)}; steps: {', '.join(NAMES)}"
        )


def parse_budgets(texts: Sequence[str]) -> Mapping[str, float]:
    """`verify=20m` and others in seconds by step; raises InputError.

    >>> parse_budgets(["verify=20m", "smoke=90s"])
    {'verify': 1200.0, 'smoke': 90.0}
    """
    budgets = {}
    for text in texts:
        name, equals, time = text.partition("=")
        if not equals:
            raise InputError(f"--budget {text!r}: expected STEP=TIME, such as verify=20m")
        require_step("--budget", name)
        budgets[name] = seconds("--budget", time)
    return budgets


def run(options: "Options") -> list["Outcome"]:
    """Every step, said as it ends; what was started is stopped at the end."""
    from contextlib import ExitStack

    from trt_mtp.controller.accept.journal import Journal
    from trt_mtp.controller.accept.runner import run_steps
    from trt_mtp.controller.accept.step import Acceptance
    from trt_mtp.controller.accept.steps import STEPS
    from trt_mtp.progress import shown
    from trt_mtp.serve.processes import terminate_as_interrupt

    outcomes: list[Outcome] = []
    with (
        terminate_as_interrupt(),
        Journal(options.folder / "journal.jsonl") as journal,
        shown("s") as meter,
        ExitStack() as live,
    ):
        acceptance = Acceptance(options, meter, live)
        for outcome in run_steps(STEPS, acceptance, journal):
            outcomes.append(outcome)
            meter.say(line_of(outcome))
    return outcomes


def line_of(outcome: "Outcome") -> str:
    """How a step ended, for the terminal."""
    text = f"{outcome.step}: {outcome.status}"
    if outcome.status == "over budget":
        return (
            f"{text}: {outcome.reason}; the same command resumes, and --budget {outcome.step}=TIME "
            "gives it more"
        )
    if outcome.is_resumed:
        return f"{text} before, and nothing that it depends on changed"
    return text + (f": {outcome.reason}" if outcome.reason else f" after {outcome.took_s:.0f} s")


def write_record(options: "Options", outcomes: Sequence["Outcome"]) -> "Record":
    """The record, written as JSON and as a page; raises InputError if the journal is damaged."""
    from pydantic import ValidationError

    from trt_mtp.controller.accept.page import page_of
    from trt_mtp.controller.accept.record import record_json
    from trt_mtp.controller.accept.recording import record_of
    from trt_mtp.files import write_atomic

    try:
        record = record_of(outcomes, options.engine)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        if not any(outcome.is_resumed for outcome in outcomes):
            raise
        journal = options.folder / "journal.jsonl"
        raise InputError(
            f"{journal} has results of another form than expected ({type(error).__name__}); "
            "remove the file to begin again"
        ) from None
    write_atomic(options.folder / "record.json", record_json(record))
    write_atomic(options.folder / "record.md", page_of(record))
    click.echo(f"written to {options.folder}/record.json and record.md", err=True)
    return record


def code_of(outcomes: Sequence["Outcome"]) -> int:
    """The exit code of these outcomes."""
    from trt_mtp.controller.accept.runner import exit_code

    return exit_code(outcomes)
