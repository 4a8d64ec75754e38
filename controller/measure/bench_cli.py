"""The `bench` command."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_mtp.files import to_json, write_atomic

if TYPE_CHECKING:
    from trt_mtp.controller.measure.bench import TaskAnswers, TaskResult

TASK_WIDTH = 18
COLUMNS = {"requests": 9, "tok/s": 9, "TTFT p50": 10, "p95": 9, "ITL p50": 9, "p95 ": 9, "AL": 7}
COLUMNS |= {"accepted": 9}
NOTE = (
    "ms; ITL is the time per token after the first, as AIPerf has it; AL the mean over requests\n"
    "of the tokens that a step brings, bonus token included"
)


@click.command()
@click.option("--url", required=True, metavar="HOST:PORT", help="gRPC of Triton or the gateway.")
@click.option("--model", required=True, help="As qwen_mtp (the gateway) or qwen_mtp_k3.")
@click.option(
    "--prompts",
    default="shipped",
    show_default=True,
    metavar="FILE",
    help="JSON lines, Spec-Bench's or SPEED-Bench's, or `shipped`.",
)
@click.option("--tasks", metavar="TASK,…", help="[default: all of the prompt set]")
@click.option("--concurrency", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(2), help="Of each answer.  [default: its prompt's]"
)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a table too."
)
@click.option(
    "--records",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a JSON line for each request too, as AIPerf's profile_export.jsonl has them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    url: str,
    model: str,
    prompts: str,
    tasks: str | None,
    concurrency: int,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    csv_file: Path | None,
    records: Path | None,
    as_json: bool,
) -> None:
    """Run one prompt set against one model and print what each task got.

    Names in JSON and CSV are those of AIPerf and of ModelOpt's specdec_bench. Exit code 1 when the
    server is lost, or a request failed.

    Example: trt-mtp bench --url 127.0.0.1:8001 --model qwen_mtp --concurrency 4
    """
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # its fork handlers crash the child; set first
    from trt_mtp.controller.measure.bench import bench as run
    from trt_mtp.controller.measure.bench import result_of, table
    from trt_mtp.controller.measure.bench_files import report, to_csv, to_records
    from trt_mtp.controller.measure.calibrate_cli import words
    from trt_mtp.controller.measure.meter import shown
    from trt_mtp.controller.measure.prompt_sets import read_prompt_set
    from trt_mtp.errors import TrtMtpError
    from trt_mtp.serve.processes import terminate_as_interrupt

    chosen = read_prompt_set(prompts)
    if tasks:
        chosen = chosen.chosen(words("--tasks", tasks))
    chosen = chosen.drawn(max_tokens, temperature, seed)
    measured: list[TaskAnswers] = []
    try:
        with terminate_as_interrupt(), shown("answers") as meter:
            meter.say(head())
            for one in run(url, model, chosen, concurrency, seed, meter):
                measured.append(one)
                meter.say(row(result_of(*one)))
    finally:  # also of what was measured before the server was lost
        if records is not None and measured:
            write_atomic(records, to_records(model, concurrency, measured))
    results = table(chosen, measured)
    if csv_file is not None:
        write_atomic(csv_file, to_csv(results))
    if as_json:
        click.echo(to_json(report(url, model, chosen, concurrency, results)), nl=False)
    else:
        click.echo("\n".join([head(), *map(row, results), NOTE]))
    failed = results[-1].error_request_count
    if failed:
        raise TrtMtpError(f"{failed} requests failed, the first with: {results[-1].error}")


def head() -> str:
    """The names of the columns."""
    return f"{'task':<{TASK_WIDTH}}" + "".join(f"{n.strip():>{w}}" for n, w in COLUMNS.items())


def row(line: "TaskResult") -> str:
    """One task's numbers under the names."""
    first, between = line.latencies["time_to_first_token"], line.latencies["inter_token_latency"]
    requests = str(line.request_count)
    if line.error_request_count:
        requests += f"+{line.error_request_count}!"
    values = (
        requests,
        f"{line.output_token_throughput:.1f}",
        f"{first.p50:.1f}",
        f"{first.p95:.1f}",
        f"{between.p50:.2f}",
        f"{between.p95:.2f}",
        f"{line.category_al:.2f}",
        f"{line.acceptance_rate:.0%}",
    )
    cells = zip(values, COLUMNS.values(), strict=True)
    return f"{line.task:<{TASK_WIDTH}}" + "".join(f"{value:>{width}}" for value, width in cells)
