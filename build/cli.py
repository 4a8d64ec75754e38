"""The commands that turn a checkpoint into variants."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from trt_mtp.build.chat_template import find_templates
from trt_mtp.build.checkpoint import Checkpoint, read_checkpoint
from trt_mtp.build.cpu import LARGEST_DRAFT_LENGTH, build_cpu
from trt_mtp.build.draft_lengths import DEFAULT, parse_draft_lengths
from trt_mtp.build.hooks import Hooks, Verify
from trt_mtp.build.hub import resolve_checkpoint
from trt_mtp.build.store import BuildResult, locked, reference_folder
from trt_mtp.build.trtllm_cli import (
    LARGEST_DRAFT_LENGTH as LARGEST_TRTLLM,
)
from trt_mtp.build.trtllm_cli import (
    given_options,
    refuse_trtllm_options,
    run_trtllm,
    trtllm_options,
)
from trt_mtp.build.variant import EngineVariant, with_verification
from trt_mtp.build.vllm_cli import LARGEST_DRAFT_LENGTH as LARGEST_VLLM
from trt_mtp.build.vllm_cli import run_vllm, vllm_python_option
from trt_mtp.errors import TrtMtpError
from trt_mtp.extras import is_installed, require_engine
from trt_mtp.files import to_json
from trt_mtp.options import SectionedCommand, engine_option, json_option
from trt_mtp.progress import shown

CPU_BATCH_SIZE = 8
SECTIONS = {
    "Variants": (
        "--draft-lengths",
        "--engine",
        "--output",
        "--max-batch-size",
        "--max-seq-len",
        "--verify",
    ),
    "TensorRT-LLM": (
        "--trtllm-version",
        "--gpu",
        "--tp",
        "--ep",
        "--devices",
        "--kv-cache-dtype",
        "--state-dtype",
        "--quantize",
        "--modelopt",
        "--flashinfer-prefill",
        "--share-weights",
        "--set",
        "--dry-run",
    ),
    "Draft length by load": ("--draft-len-schedule", "--profile", "--mix"),
    "vLLM": ("--vllm-python",),
}


@click.command()
@click.argument("checkpoint")
@json_option
def inspect(checkpoint: str, as_json: bool) -> None:
    """Show a checkpoint's model family, size, quantization and MTP head.

    CHECKPOINT is a folder or the id of a model in the Hugging Face cache. Only config files and
    safetensors headers are read.

    Example: trt-mtp inspect Qwen/Qwen3.5-0.8B
    """
    from trt_mtp.build.inspect import describe, render

    found = read_checkpoint(resolve_checkpoint(checkpoint))
    click.echo(to_json(describe(found)) if as_json else render(found), nl=not as_json)


@click.command(cls=SectionedCommand, sections=SECTIONS)
@click.argument("checkpoint")
@click.option(
    "--draft-lengths",
    default=DEFAULT,
    show_default=True,
    help="Draft lengths (K) to build, comma-separated; 0 is no speculation.",
)
@engine_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="engines",
    show_default=True,
    help="Directory of the variants.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1, 4096),
    help="Maximum batch size.  [default: 8; tensorrt-llm: 32]",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(16),
    help="Maximum prompt plus output length, in tokens.  [default: the checkpoint's, at most "
    "4096; tensorrt-llm: at most 8192]",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Check that every variant generates the same tokens as no speculation.",
)
@vllm_python_option
@json_option
@trtllm_options
@click.pass_obj
def build(
    hooks: Hooks,
    /,
    checkpoint: str,
    draft_lengths: str,
    engine: str,
    output: Path,
    max_batch_size: int | None,
    max_seq_len: int | None,
    verify: bool,
    vllm_python: Path | None,
    as_json: bool,
    **trtllm: Any,
) -> None:
    """Build one engine variant per draft length from a checkpoint.

    CHECKPOINT is a folder or the id of a model in the Hugging Face cache. Each draft length
    becomes a folder in the output folder, with a record of what it was built from. Running it again
    changes nothing if nothing changed.

    An option for TensorRT-LLM implies --engine tensorrt-llm. --draft-len-schedule is also for vllm,
    whose variants run with the Python of --vllm-python.

    Example: trt-mtp build assets/qwen-mtp-tiny --draft-lengths 0,1,3

    Example: trt-mtp build Qwen/Qwen3.8-27B-FP8 --gpu h100-80gb --trtllm-version 1.3.0rc27 --dry-run
    """
    if engine == "vllm":
        lengths = parse_draft_lengths(draft_lengths, LARGEST_VLLM)
        found = read_to_build(checkpoint)
        run_vllm(found, lengths, output, vllm_python, max_batch_size, max_seq_len, as_json, trtllm)
        return
    if choose_engine(engine, bool(given_options(trtllm))) == "tensorrt-llm":
        lengths = parse_draft_lengths(draft_lengths, LARGEST_TRTLLM)
        found = read_to_build(checkpoint)
        run_trtllm(found, lengths, output, max_batch_size, max_seq_len, as_json, trtllm, hooks)
        return
    refuse_trtllm_options(trtllm)
    require_engine("cpu")
    lengths = parse_draft_lengths(draft_lengths, LARGEST_DRAFT_LENGTH)
    found = read_to_build(checkpoint)
    with locked(output, lambda: click.echo("waiting for another build", err=True)):
        result = run_cpu(found, lengths, output, max_batch_size or CPU_BATCH_SIZE, max_seq_len)
        if verify:
            result = run_verify(result, output, hooks.verify)
    click.echo(to_json(result_json(result)) if as_json else result_text(result), nl=not as_json)
    require_identical(result.variants)


def read_to_build(name: str) -> Checkpoint:
    """The checkpoint, with a line on stderr where its variants will take no messages."""
    found = read_checkpoint(resolve_checkpoint(name))
    if next(find_templates(found.path), None) is None:
        click.echo(
            f"{found.path} has no chat template: its variants will take texts and token ids, but "
            f"no messages; for chats, add chat_template.jinja of the model that it was made from",
            err=True,
        )
    return found


def choose_engine(engine: str, for_trtllm: bool = False) -> str:
    """`engine`, or for `auto` what the options are for, or what this machine can run."""
    if engine != "auto":
        return engine
    if for_trtllm:
        return "tensorrt-llm"
    has_gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()
    has_package = is_installed("tensorrt_llm")
    return "tensorrt-llm" if has_gpu and has_package else "cpu"


def run_cpu(
    checkpoint: Checkpoint,
    lengths: Sequence[int],
    output: Path,
    max_batch_size: int,
    max_seq_len: int | None,
) -> BuildResult:
    """Build for the CPU engine with progress shown."""
    with shown("MB", scale=1e6) as meter:
        return build_cpu(
            checkpoint,
            lengths,
            output,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
            progress=meter.update,
        )


def run_verify(result: BuildResult, output: Path, verifier: Verify) -> BuildResult:
    """Compare the variants that were not compared before with no speculation; keep the outcome."""
    pending = [variant for variant in result.variants if not variant.record.verification]
    if not pending:
        return result
    click.echo(f"verifying {', '.join(variant.name for variant in pending)}", err=True)
    outcomes = verifier(
        reference_folder(output, result.variants), [variant.folder for variant in pending]
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    verified = {
        variant.name: with_verification(variant, {"verified": now, **outcome})
        for variant, outcome in zip(pending, outcomes, strict=True)
    }
    variants = tuple(verified.get(variant.name, variant) for variant in result.variants)
    return BuildResult(variants, result.built, result.unchanged, result.removed)


def result_json(result: BuildResult) -> dict[str, Any]:
    """What `trt-mtp build --json` prints."""
    return {
        "schema_version": 1,
        "variants": [
            {
                "name": variant.name,
                "draft_length": variant.draft_length,
                "engine": variant.engine,
                "folder": str(variant.folder),
                "status": "built" if variant.name in result.built else "unchanged",
                "fingerprint": variant.record.fingerprint,
                "verification": variant.record.verification,
            }
            for variant in result.variants
        ],
        "removed": list(result.removed),
    }


def result_text(result: BuildResult) -> str:
    """A line for each variant."""
    lines = []
    for variant in result.variants:
        status = "built" if variant.name in result.built else "unchanged"
        verification = variant.record.verification
        checked = "not verified"
        if verification:
            same = "same answers" if verification["is_identical"] else "OTHER answers"
            checked = f"{same} as without speculation, {verification['num_tokens']} tokens"
        lines.append(f"{variant.folder}  {status}, {checked}")
    lines += [f"{name}  removed: it was built from something else" for name in result.removed]
    if not result.built and not result.removed:
        lines.append("nothing to do: everything is up to date")
    return "\n".join(lines)


def require_identical(variants: Sequence[EngineVariant]) -> None:
    """Raise TrtMtpError when a variant answers otherwise than the model without speculation."""
    wrong = [v.name for v in variants if not v.record.verification.get("is_identical", True)]
    if wrong:
        raise TrtMtpError(
            f"{', '.join(wrong)} answered otherwise than draft length 0; "
            f"the records have the first differences under verification"
        )
