"""The `bench` command."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.controller.calibrate.calibrate_cli import openai_key_option, tasks_option
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import to_json, write_atomic
from trt_mtp.interrupts import run_async
from trt_mtp.options import FILE, json_option, temperature_option, wide_option
from trt_mtp.printable import printable
from trt_mtp.serve.hosts import require_target
from trt_mtp.terminal import say

if TYPE_CHECKING:
    from trt_mtp.controller.calibrate.bench import Target, TaskAnswers
    from trt_mtp.controller.calibrate.bench_table import Column
    from trt_mtp.controller.calibrate.prompt_sets import PromptSet


@click.command()
@click.option(
    "--url",
    metavar="HOST:PORT",
    help="gRPC address of a Triton server or a gateway.",
)
@click.option(
    "--openai",
    "openai_url",
    metavar="URL",
    help="Base URL of a server that speaks OpenAI's API, such as http://127.0.0.1:8000/v1, instead "
    "of --url.",
)
@openai_key_option
@click.option(
    "--model",
    required=True,
    help="Model to benchmark, such as qwen_mtp (the gateway) or qwen_mtp_k3 (a variant).",
)
@click.option(
    "--prompts",
    default="shipped",
    show_default=True,
    metavar="FILE",
    help="Prompt set: JSON lines, a Spec-Bench or SPEED-Bench file, or `shipped`.",
)
@tasks_option
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="Requests in flight at a time.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    help="Maximum output tokens per answer.  [default: the prompt's]",
)
@temperature_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Random seed, also of sampling.",
)
@click.option("--csv", "csv_file", type=FILE, help="Also write the table to this CSV file.")
@click.option(
    "--records",
    type=FILE,
    help="Also write one JSON line per request, in the format of AIPerf's profile_export.jsonl.",
)
@wide_option
@json_option
def bench(
    url: str | None,
    openai_url: str | None,
    openai_key_file: Path | None,
    model: str,
    concurrency: int,
    seed: int,
    csv_file: Path | None,
    records: Path | None,
    wide: bool,
    as_json: bool,
    **prompts: Any,
) -> None:
    """Benchmark one model, a variant or the gateway, per task.

    Names in JSON and CSV are those of AIPerf and of ModelOpt's specdec_bench. Exit code 1 when the
    server is lost, or a request failed.

    Rows come on stderr as tasks end. On a terminal they are the table, and a row for all follows.

    Example: trt-mtp bench --url 127.0.0.1:8001 --model qwen_mtp --concurrency 4

    Example: trt-mtp bench --openai http://127.0.0.1:8000/v1 --model Qwen/Qwen3.8-27B
    """
    if bool(url) == bool(openai_url):
        raise InputError(
            "name the server with --url, or with --openai where it speaks OpenAI's API"
        )
    if url:
        require_target(url, "127.0.0.1:8001")
    from trt_mtp.controller.calibrate.bench import table
    from trt_mtp.controller.calibrate.bench_files import report, to_csv, to_records
    from trt_mtp.controller.calibrate.bench_table import COLUMNS, NOTE, WIDE, head, row

    chosen = _prompts(seed=seed, **prompts)
    target = _openai(openai_url, model, openai_key_file) if openai_url else _triton(url, model)
    answers: list[TaskAnswers] = []
    columns = WIDE if wide else COLUMNS
    try:
        _measure(answers, target, chosen, concurrency, seed, columns)
        results = table(chosen, answers)
        # before the files, whose disk may be full
        if as_json:
            click.echo(to_json(report(target, chosen, concurrency, results)), nl=False)
        else:
            is_shown = sys.stdout.isatty() and sys.stderr.isatty()  # row by row, as they came
            lines = [row(line, columns) for line in results]
            click.echo(printable("\n".join(lines[-1:] if is_shown else [head(columns), *lines])))
            say("\n".join([NOTE, *(f"the server {note}" for note in target.notes)]))
    finally:  # also what was measured before the server was lost
        if records is not None and answers:
            write_atomic(records, to_records(model, concurrency, answers))
    if csv_file is not None:
        write_atomic(csv_file, to_csv(results))
    failed = results[-1].error_request_count
    if failed:
        raise TrtMtpError(f"{failed} requests failed, the first with: {results[-1].error}")


def _prompts(
    prompts: str,
    tasks: tuple[str, ...] | None,
    max_tokens: int | None,
    temperature: float,
    seed: int,
) -> "PromptSet":
    from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set

    whole = read_prompt_set(prompts)
    return (whole.chosen(tasks) if tasks else whole).drawn(max_tokens, temperature, seed)


def _triton(url: str | None, model: str) -> "Target":
    from trt_mtp.controller.calibrate.bench import triton_target

    return triton_target(url or "", model)


def _openai(url: str, model: str, key_file: Path | None) -> "Target":
    from trt_mtp.controller.calibrate.bench import openai_target
    from trt_mtp.controller.calibrate.openai.server import base_url, found_server, read_key

    key = read_key(key_file, os.environ.get("OPENAI_API_KEY"))
    return openai_target(run_async(found_server(base_url("--openai", url), model, key)))


def _measure(
    answers: "list[TaskAnswers]",
    target: "Target",
    prompts: "PromptSet",
    concurrency: int,
    seed: int,
    columns: "Sequence[Column]",
) -> None:
    """Append the answers of each task to `answers`, and print its row."""
    from trt_mtp.controller.calibrate.bench import bench as run
    from trt_mtp.controller.calibrate.bench import result_of
    from trt_mtp.controller.calibrate.bench_table import head, row
    from trt_mtp.progress import shown
    from trt_mtp.serve.processes import terminate_as_interrupt

    with terminate_as_interrupt(), shown("answers") as meter:
        meter.say(head(columns))
        for one in run(target, prompts, concurrency, seed, meter):
            answers.append(one)
            meter.say(row(result_of(*one), columns))
