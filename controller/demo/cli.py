"""The `demo` command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trt_mtp.build.vllm_cli import vllm_python_option
from trt_mtp.controller.up_cli import stack_options
from trt_mtp.extras import require_extras
from trt_mtp.files import to_json
from trt_mtp.options import engine_option, json_option

NOTABLE_SHARE = 0.03  # of an answer's time, from which on the gateway's share is explained
TABLE_WIDTH = 200  # at most; it takes what it needs


@click.command()
@stack_options
@engine_option
@vllm_python_option
@click.option(
    "--short", is_flag=True, help="Send 4 prompts per task instead of 20, and time each once."
)
@json_option
def demo(
    checkpoint: str | None,
    draft_lengths: str,
    output: Path,
    engine: str,
    vllm_python: Path | None,
    short: bool,
    as_json: bool,
) -> None:
    """Run the whole stack on this machine and print the speedup per task.

    CHECKPOINT is a folder with a prompts.jsonl of held-out prompts; the default is
    assets/qwen-mtp-tiny of the checkout. Every prompt goes to each variant and to the gateway,
    interleaved, through stock tritonclient; then variants are measured under load. A report of it
    is written beside the variants. Everything started is stopped at the end. Exit code 1 when
    answers of the CPU engine differ between draft lengths; those of other engines may part at near
    ties, and the table says how many are the same.

    Example: trt-mtp demo --short --json
    """
    require_extras("trt-mtp demo", "cpu", "report")
    from trt_mtp.controller.demo.demo import FULL, SHORT, require_lossless, run_demo
    from trt_mtp.controller.up import default_checkpoint
    from trt_mtp.progress import shown
    from trt_mtp.serve.processes import terminate_as_interrupt

    with terminate_as_interrupt(), shown("answers") as meter:
        result = run_demo(
            checkpoint or default_checkpoint(),
            draft_lengths,
            output,
            SHORT if short else FULL,
            meter,
            engine,
            vllm_python,
        )
    if as_json:
        click.echo(to_json(result), nl=False)
    else:
        print_tables(result)
        click.echo(f"\nWhich draft length to use for what, as a page: {result['report']}")
    require_lossless(result)


def print_tables(result: dict[str, Any]) -> None:
    """The tables on stdout, never cut to the width of a terminal."""
    from rich.console import Console

    from trt_mtp.controller.demo.demo import draft_rows, speed_rows

    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    for rows in (speed_rows, draft_rows):
        console.print(_by_task(list(rows(result))))
    console.print(_why_table(result))
    best = result["overall"]["best_static_k"]
    console.print(
        "None, best K, routed: output tokens a second of whole answers, one at a time: without\n"
        f"speculation, with K={best} for all (the best single draft length), and routed.\n"
        "Speed-up: routed against none on the same prompt, median and 95% interval, of whole\n"
        "answers and of the time after the first token. Gateway: the share of a routed answer's\n"
        "time that the way through the gateway took, beside the same draft length asked directly;\n"
        "below 0 is noise. AL: tokens of a step. Why: what most of a task's decisions said, and\n"
        "how much faster than K=0 they expected to be (median). Compare ratios, not absolute\n"
        "speeds."
    )
    found = result["overall"]["gateway_share"]
    share = found["median"]
    if share >= NOTABLE_SHARE and found["low"] > 0:
        console.print(
            f"\nThis model is so fast that the gateway shows: its way takes {share:.0%} of an\n"
            "answer's time, which a task has to gain before routing is faster than no speculation\n"
            "without a gateway. Where a token takes longer, the same milliseconds are less of it."
        )


def _by_task(lines: Sequence[Sequence[str]]) -> Any:
    """A table whose first line is its head, and whose last one is of all tasks."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line, end_section=line is lines[-2])
    return table


def _why_table(result: dict[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from trt_mtp.controller.demo.reasons import reason_rows

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "why, most often", "expected speed-up"):
        table.add_column(name, justify="right" if name.startswith("exp") else "left", no_wrap=True)
    for line in reason_rows(result["tasks"]):
        table.add_row(*line)
    return table
