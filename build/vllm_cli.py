"""The part of `trt-mtp build` that is for vLLM."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.trtllm_cli import given_options
from trt_mtp.errors import InputError
from trt_mtp.extras import require_extras
from trt_mtp.files import to_json

LARGEST_DRAFT_LENGTH = 16
MAX_BATCH_SIZE = 8
SCHEDULE = "--draft-len-schedule"

vllm_python_option = click.option(
    "--vllm-python",
    type=click.Path(path_type=Path),
    envvar="TRT_MTP_VLLM_PYTHON",
    show_envvar=True,
    help="Python of the environment that has vLLM.  [default: this one]",
)


def run_vllm(
    checkpoint: Checkpoint,
    lengths: Sequence[int],
    output: Path,
    python: Path | None,
    max_batch_size: int | None,
    max_seq_len: int | None,
    as_json: bool,
    others: Mapping[str, Any],
) -> None:
    """Build for vLLM and print what was built."""
    from trt_mtp.build.cli import result_json, result_text
    from trt_mtp.build.store import locked
    from trt_mtp.build.trtllm_config import parse_schedule
    from trt_mtp.build.vllm import build_vllm
    from trt_mtp.build.vllm_environment import check_environment, find_environment

    wrong = [name for name in given_options(others) if name != SCHEDULE]
    if wrong:
        raise InputError(f"{wrong[0]} is for --engine tensorrt-llm; leave it out, or choose that")
    require_extras("building for vllm", "cpu")
    environment = find_environment(python)
    check_environment(environment, checkpoint)
    schedule = others["draft_len_schedule"]
    with locked(output, lambda: click.echo("waiting for another build", err=True)):
        result = build_vllm(
            checkpoint,
            lengths,
            output,
            environment,
            max_batch_size=max_batch_size or MAX_BATCH_SIZE,
            max_seq_len=max_seq_len,
            schedule=parse_schedule(schedule) if schedule else None,
        )
    click.echo(to_json(result_json(result)) if as_json else result_text(result), nl=not as_json)
    click.echo(f"compare the variants with trt-mtp verify {shlex.quote(str(output))}", err=True)
