"""The part of `trt-mtp build` that is for NVIDIA servers: its options, and what it prints."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.hooks import Hooks, Schedules
from trt_mtp.errors import InputError
from trt_mtp.files import to_json
from trt_mtp.options import together

if TYPE_CHECKING:
    from trt_mtp.build.tensorrt_llm import PlannedVariant
    from trt_mtp.build.trtllm_config import TrtllmOptions

Command = Callable[..., Any]
LARGEST_DRAFT_LENGTH = 16
MAX_BATCH_SIZE = 32
MAX_SEQ_LEN = 8192

# the keyword each option arrives by -> its value when it was not given
UNSET: dict[str, Any] = {
    "trtllm_version": None, "gpu": None, "tp": None, "ep": None, "kv_cache_dtype": None,
    "state_dtype": None, "draft_len_schedule": None, "quantize": None, "modelopt": None,
    "share_weights": None, "devices": None, "settings": (), "dry_run": False,
    "flashinfer_prefill": False,
    "profile": None, "mix": None,
}  # fmt: skip

trtllm_options = together(
    click.option(
        "--trtllm-version",
        metavar="VERSION",
        help="TensorRT-LLM version to build for.  [default: the installed one]",
    ),
    click.option(
        "--gpu", metavar="TYPE", help="GPU to plan for, such as h100-80gb.  [default: detected]"
    ),
    click.option("--tp", type=click.IntRange(1, 64), help="Tensor-parallel size."),
    click.option(
        "--ep",
        type=click.IntRange(1, 64),
        help="Expert-parallel size.  [default: 1; Flash-Next: --tp]",
    ),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "fp8", "nvfp4"]),
        help="Data type of the KV cache; auto keeps the checkpoint's.",
    ),
    click.option(
        "--state-dtype",
        type=click.Choice(["auto", "bfloat16", "float32"]),
        help="Data type of the Gated DeltaNet states; auto keeps the checkpoint's.",
    ),
    click.option(
        "--draft-len-schedule",
        metavar="N:K,…",
        help="Draft length by batch size: 4:3,16:2 drafts 3 tokens up to batch 4, and 2 up to 16.",
    ),
    click.option(
        "--profile",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Derive --draft-len-schedule from this profile.",
    ),
    click.option(
        "--mix",
        metavar="TASK=SHARE,…",
        help="With --profile: traffic mix, such as coding=3,qa=1.  [default: equal shares]",
    ),
    click.option(
        "--quantize",
        type=click.Choice(["fp8", "nvfp4"]),
        help="Quantize the checkpoint with ModelOpt before building.",
    ),
    click.option(
        "--modelopt",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Checkout of NVIDIA/Model-Optimizer, required by --quantize.",
    ),
    click.option(
        "--devices",
        metavar="N,N,…",
        help="GPU indices, assigned to the variants in order, --tp each.",
    ),
    click.option(
        "--flashinfer-prefill",
        is_flag=True,
        help="Let TensorRT-LLM choose FlashInfer's Gated DeltaNet prefill while drafting, too.",
    ),
    click.option(
        "--share-weights",
        type=click.Choice(["gms"]),
        help="Share weights between variants through GPU Memory Service (experimental).",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set an LLM API option, such as kv_cache_config.enable_block_reuse=true; repeatable.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print the plan, the memory estimate and findings; write nothing.",
    ),
)


def given_options(values: Mapping[str, Any]) -> list[str]:
    """The options above that the user gave, as they are typed."""
    names = {"settings": "--set"}
    return [
        names.get(name, f"--{name.replace('_', '-')}")
        for name, unset in UNSET.items()
        if values[name] != unset
    ]


def refuse_trtllm_options(values: Mapping[str, Any]) -> None:
    """Raise InputError when an option for TensorRT-LLM was given and another engine is built."""
    given = given_options(values)
    if given:
        raise InputError(f"{given[0]} is for --engine tensorrt-llm; leave it out, or choose that")


def run_trtllm(
    checkpoint: Checkpoint,
    lengths: Sequence[int],
    output: Path,
    max_batch_size: int | None,
    max_seq_len: int | None,
    as_json: bool,
    values: Mapping[str, Any],
    hooks: Hooks,
) -> None:
    """Plan the variants, print them, and unless it is a dry run write them."""
    from trt_mtp.build.quantize import planned_quantization, quantized_checkpoint
    from trt_mtp.build.store import locked
    from trt_mtp.build.tensorrt_llm import plan_variants, require_no_errors, write_variants
    from trt_mtp.build.trtllm_version import container_of

    measured = measured_schedules(lengths, max_batch_size or MAX_BATCH_SIZE, values, hooks)
    options = options_of(checkpoint, max_batch_size, max_seq_len, values, measured)
    image = container_of(options.version)
    if image:
        click.echo(f"the commands are for the container {image}", err=True)
    planned = planned_quantization(checkpoint, options, output)
    variants = plan_variants(checkpoint, planned, lengths, output)
    if values["dry_run"]:
        click.echo(variants_json(variants) if as_json else variants_text(variants), nl=not as_json)
        require_no_errors(variants)
        return
    require_no_errors(variants)
    with locked(output, lambda: click.echo("waiting for another build", err=True)):
        checkpoint, options = quantized_checkpoint(checkpoint, options, output, values["modelopt"])
        variants = plan_variants(checkpoint, options, lengths, output)
        result = write_variants(variants, checkpoint, options, output)
    click.echo(variants_json(variants) if as_json else variants_text(variants), nl=not as_json)
    built = ", ".join(result.built) or "nothing new"
    verify = f"trt-mtp verify {shlex.quote(str(output))}"
    click.echo(f"written to {output}: {built}; on the server, {verify}", err=True)


def options_of(
    checkpoint: Checkpoint,
    max_batch_size: int | None,
    max_seq_len: int | None,
    values: Mapping[str, Any],
    measured: Schedules,
) -> "TrtllmOptions":
    """What was typed, with defaults for what was not."""
    from trt_mtp.build.gpus import detect_gpu, find_gpu
    from trt_mtp.build.tensorrt_llm import options_for
    from trt_mtp.build.trtllm_config import parse_devices, parse_schedule
    from trt_mtp.build.trtllm_version import chosen_version

    schedule, devices = values["draft_len_schedule"], values["devices"]
    return options_for(
        checkpoint,
        chosen_version(values["trtllm_version"]),
        find_gpu(values["gpu"]) if values["gpu"] else detect_gpu(),
        tensor_parallel=values["tp"] or 1,
        expert_parallel=values["ep"] or default_experts(checkpoint, values["tp"] or 1),
        max_batch_size=max_batch_size or MAX_BATCH_SIZE,
        max_seq_len=max_seq_len or min(MAX_SEQ_LEN, checkpoint.context_length),
        kv_cache_dtype=values["kv_cache_dtype"] or "auto",
        state_option=values["state_dtype"] or "auto",
        schedule=parse_schedule(schedule) if schedule else None,
        measured_schedules=measured,
        share_weights=values["share_weights"],
        flashinfer_prefill=values["flashinfer_prefill"],
        quantize=values["quantize"],
        settings=values["settings"],
        devices=parse_devices(devices) if devices else (),
    )


def measured_schedules(
    lengths: Sequence[int], max_batch_size: int, values: Mapping[str, Any], hooks: Hooks
) -> Schedules:
    """The schedule of each draft length by --profile; none without it."""
    if values["profile"] is None:
        if values["mix"]:
            raise InputError("--mix is for --profile; name the profile too")
        return {}
    if values["draft_len_schedule"]:
        raise InputError("--profile and --draft-len-schedule both say when to draft how much")
    return hooks.schedules(values["profile"], lengths, max_batch_size, values["mix"])


def default_experts(checkpoint: Checkpoint, tensor_parallel: int) -> int:
    """How many groups of whole experts: one, but for Flash-Next, whose experts must stay whole.

    Its experts are five blocks of 128 wide, which a split would cut (its deployment guide).
    """
    return tensor_parallel if checkpoint.family == "qwen3.8-flash-next" else 1


def variants_json(variants: Sequence["PlannedVariant"]) -> str:
    """What `trt-mtp build --engine tensorrt-llm --json` prints."""
    return to_json({"schema_version": 1, "variants": [variant.as_json() for variant in variants]})


def variants_text(variants: Sequence["PlannedVariant"]) -> str:
    """Each variant with its memory and its command, then what is to be known about them."""
    blocks = [
        f"{variant.name}  drafts {variant.draft_length}\n"
        f"  {memory_line(variant)}\n  {variant.shell_command}"
        for variant in variants
    ]
    names: dict[Any, list[str]] = {}
    for variant in variants:
        for finding in variant.findings:
            names.setdefault(finding, []).append(variant.name)
    blocks += [
        f"{finding.severity} ({', '.join(named)}): {finding.message}\n  {finding.source}"
        for finding, named in names.items()
    ]
    return "\n\n".join(blocks)


def memory_line(variant: "PlannedVariant") -> str:
    """The memory of a variant in one line, decimal gigabytes per GPU."""
    memory = variant.memory
    parts = {
        "weights": memory.weights + memory.mtp_head,
        "states": memory.state,
        "rollback": memory.rollback_scratch,
        "other": memory.runtime + memory.activations + memory.cuda_graphs,
    }
    text = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    if memory.gpu is None:
        return f"memory per GPU in GB: {text}; name the GPU with --gpu to see what is left"
    return (
        f"memory of {memory.gpu} in GB: {text}, KV cache {memory.kv_cache / 1e9:.1f} = "
        f"{memory.kv_cache_tokens:,} tokens; up to {variant.largest_batch} requests can all be "
        "of full length"
    )
