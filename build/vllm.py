"""Variants for vLLM: its arguments for each draft length, for the environment that has it.

No weights are copied. A text-only Qwen3.5 gets a folder of links with a config.json of its own.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.build.checkpoint import FOR_IMAGES, Checkpoint
from trt_mtp.build.cores import usable_cores
from trt_mtp.build.cpu import check_length, cpu_name
from trt_mtp.build.quantization import are_costly, matches, quantization_targets
from trt_mtp.build.store import (
    SHARED,
    BuildResult,
    install_shared,
    install_variants,
    refuse_other_engines,
)
from trt_mtp.build.tensor_names import described
from trt_mtp.build.tensorrt_llm import sampled_digest
from trt_mtp.build.tensors import INDEX, find_copy
from trt_mtp.build.text_check import check_text
from trt_mtp.build.variant import (
    SCHEMA_VERSION,
    VariantRecord,
    fingerprint_of,
    identity,
    variant_name,
)
from trt_mtp.build.vllm_environment import VllmEnvironment
from trt_mtp.errors import InputError

ENGINE = "vllm"
FORMAT = 1  # of the folder of links; part of the hash that names it
CACHE_GB = "VLLM_CPU_KVCACHE_SPACE"
THREADS = "OMP_NUM_THREADS"
MROPE = ("mrope_section", "mrope_interleaved")
# what vLLM itself has before the text's tensors in a class for images and texts
OWN_PREFIXES = ("language_model.model.", "language_model.lm_head.")


def build_vllm(
    checkpoint: Checkpoint,
    draft_lengths: Sequence[int],
    engines: Path,
    environment: VllmEnvironment,
    *,
    max_batch_size: int,
    max_seq_len: int | None,
    schedule: Mapping[int, int] | None,
) -> BuildResult:
    """Write the variants in `engines`, which is locked by the caller.

    Raises InputError for a checkpoint or sizes that can't be served.
    """
    refuse_other_engines(engines, ENGINE)
    check_checkpoint(checkpoint)
    if any(draft_lengths):
        check_plain_head(checkpoint)
    length = check_length(checkpoint, max_seq_len)
    digest = sampled_digest(checkpoint)
    common = common_record(checkpoint, digest, environment) | {
        "max_batch_size": max_batch_size,
        "max_seq_len": length,
        "shared": linked(checkpoint, engines, digest),
    }
    records = [
        VariantRecord(
            name=variant_name(draft_length),
            draft_length=draft_length,
            details=details(
                environment,
                engine_args(environment, draft_length, max_batch_size, length, schedule),
                schedule if draft_length else None,
            ),
            **common,
        )
        for draft_length in draft_lengths
    ]
    return install_variants(engines, records)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise InputError for what can't draft, and for texts that can't be read."""
    if checkpoint.mtp.missing:
        raise InputError(
            f"{checkpoint.path} lacks {checkpoint.mtp.missing[0]} and so can't draft; "
            "download the original checkpoint again"
        )
    if checkpoint.text_class:
        raise InputError(
            f"{checkpoint.path}/config.json: architectures names {checkpoint.architecture}, which "
            f"needs a text_config, and there is none; for a text model write "
            f"{checkpoint.text_class} there"
        )
    check_names(checkpoint)
    copy = find_copy(checkpoint.path, {info.file for info in checkpoint.tensors.values()})
    if copy is not None:
        raise InputError(
            f"{copy[0]} has {copy[1]} too, which {INDEX} gives to another file, and vLLM loads "
            f"files whole, so that either may count; save the model again"
        )
    check_text(checkpoint.path, checkpoint.vocab_size)


def check_names(checkpoint: Checkpoint) -> None:
    """Raise InputError for names of tensors that the checkpoint's class doesn't load.

    A class for images and texts loads `model.language_model.*`, one for texts `model.*`, and the
    drafter `mtp.*` (hf_to_vllm_mapper in vllm/model_executor/models/qwen3_vl.py, load_weights in
    qwen3_5.py and qwen3_5_mtp.py at 01d99805).
    """
    is_for_images = checkpoint.architecture.endswith(FOR_IMAGES)
    own = OWN_PREFIXES if is_for_images else ()
    foreign = [prefix for prefix in checkpoint.foreign_prefixes if prefix not in own]
    if foreign:
        raise InputError(
            f"{checkpoint.path}: the tensors are named {described(foreign)}, which vLLM doesn't "
            f"load; save the model that is inside, or rename them as in the released checkpoints"
        )
    expected = "model.language_model." if is_for_images else "model."
    if checkpoint.prefix != expected:
        raise InputError(
            f"{checkpoint.path}: the tensors are named {checkpoint.prefix}layers.*, and vLLM's "
            f"{checkpoint.architecture} loads {expected}layers.*; rename them, or export the "
            f"model again with the names of the one that it was made from"
        )


def check_plain_head(checkpoint: Checkpoint) -> None:
    """Raise InputError for a plain MTP head that a quantised checkpoint doesn't say is plain.

    vLLM makes the drafter's layers quantised then, and finds no weights for them
    (https://github.com/vllm-project/vllm/issues/53387; Qwen3_5MultiTokenPredictor in
    vllm/model_executor/models/qwen3_5_mtp.py at 01d99805).
    """
    quantization = checkpoint.quantization
    if quantization is None or quantization.tool != "compressed-tensors":
        return
    targets = quantization_targets(checkpoint.config)
    if are_costly((*targets, *quantization.excluded)):
        return
    for name in checkpoint.mtp.tensors:
        module, _, last = name.rpartition(".")
        if last != "weight" or not module.endswith(("_proj", ".fc")):
            continue
        if matches(module, targets) and not matches(module, quantization.excluded):
            raise InputError(
                f"{checkpoint.path}/config.json: quantization_config quantises {module}, whose "
                f"weight is plain, and vLLM could not draft with it; add 're:^mtp.*' to its ignore"
            )


def engine_args(
    environment: VllmEnvironment,
    draft_length: int,
    max_batch_size: int,
    max_seq_len: int,
    schedule: Mapping[int, int] | None,
) -> dict[str, Any]:
    """The arguments of vLLM's AsyncEngineArgs, but for the model's folder."""
    arguments: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": max_seq_len,
        "max_num_seqs": max_batch_size,
        "enforce_eager": environment.is_cpu,  # compiling took minutes on a CPU and gained nothing
        "skip_tokenizer_init": True,  # text is ours, as with every engine
        "generation_config": "vllm",  # a request says how it is sampled
        "enable_prefix_caching": False,  # or a step's cost depends on what was asked before
        "disable_log_stats": True,
    }
    if draft_length == 0:
        return arguments
    speculative: dict[str, Any] = {"method": "mtp", "num_speculative_tokens": draft_length}
    if schedule:
        speculative["num_speculative_tokens_per_batch_size"] = ranges(
            schedule, draft_length, max_batch_size
        )
    return arguments | {
        "speculative_config": speculative,
        "per_request_spec_decode_metrics": "detailed",
    }


def ranges(schedule: Mapping[int, int], draft_length: int, max_batch_size: int) -> list[list[int]]:
    """A schedule of largest batches as vLLM has it: first batch, last batch, draft length.

    >>> ranges({2: 3, 8: 1}, 3, 16)
    [[1, 2, 3], [3, 16, 1]]
    """
    bounds = sorted(schedule)
    if schedule[bounds[0]] != draft_length or max(schedule.values()) > draft_length:
        raise InputError(
            f"--draft-len-schedule must begin with the draft length, {draft_length}, and not go "
            f"above it"
        )
    firsts = [1, *(bound + 1 for bound in bounds)]
    lasts = [*bounds[:-1], max(bounds[-1], max_batch_size)]
    return [
        [first, last, schedule[bound]]
        for first, last, bound in zip(firsts, lasts, bounds, strict=False)
    ]


def details(
    environment: VllmEnvironment, arguments: dict[str, Any], schedule: Mapping[int, int] | None
) -> dict[str, Any]:
    """What only this kind of engine has in its record."""
    lengths = {str(bound): length for bound, length in (schedule or {}).items()}
    return {
        "python": str(environment.python),
        "engine_args": arguments,
        "environment": variables(environment),
        **({"draft_len_schedule": lengths} if lengths else {}),
    }


def variables(environment: VllmEnvironment) -> dict[str, str]:
    """The environment variables of a variant's process."""
    common = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # Triton's process has threads, and can't fork
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",  # the checkpoint is here
    }
    if not environment.is_cpu:
        return common
    return common | {
        CACHE_GB: os.environ.get(CACHE_GB, "1"),
        THREADS: os.environ.get(THREADS) or str(usable_cores()),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # variants share the cores
    }


def linked(checkpoint: Checkpoint, engines: Path, digest: str) -> str | None:
    """The folder of links for a checkpoint whose config vLLM reads wrongly; None for another.

    vLLM takes M-RoPE out of a text-only Qwen3.5, whose positions have one dimension, but not out of
    its drafter, which then writes beyond its buffers on a CPU (Qwen3_5ForCausalLMConfig in
    vllm/model_executor/models/config.py, 0.32.0). Without these keys it is the same model for text.
    """
    config = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    is_text_only = str(checkpoint.architecture).endswith("ForCausalLM")
    if not (is_text_only and isinstance(rope, dict) and set(MROPE) & rope.keys()):
        return None
    plain = {name: value for name, value in rope.items() if name not in MROPE}
    key = fingerprint_of({"checkpoint": digest, "path": str(checkpoint.path), "vllm": FORMAT})

    def write(folder: Path) -> None:
        for file in checkpoint.path.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (folder / file.name).symlink_to(file)
        text = json.dumps(config | {"rope_parameters": plain}, indent=1)
        (folder / "config.json").write_text(text, encoding="utf-8")

    install_shared(engines, key, 1 << 20, write)
    return f"../{SHARED}/{key}"


def common_record(
    checkpoint: Checkpoint, digest: str, environment: VllmEnvironment
) -> dict[str, Any]:
    """What the records of all draft lengths share."""
    versions = {
        "trt_mtp": __version__,
        "python": environment.python_version,
        "vllm": environment.vllm_version,
        "torch": environment.versions.get("torch", ""),
    }
    device = (
        {"kind": "cpu", "name": cpu_name(), "count": os.cpu_count() or 1}
        if environment.is_cpu
        else {"kind": "gpu", "name": "unknown", "count": 1}
    )
    measured_on = {
        "engine": ENGINE,
        "checkpoint": digest,
        "precision": "bfloat16",
        "vllm": environment.vllm_version,
        "torch": versions["torch"],
        "device": str(device["name"]),
        "device_count": str(device["count"]),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": ENGINE,
        "checkpoint": {
            "path": str(checkpoint.path.resolve()),
            "sha256": digest,
            "hashed": "names, sizes, first and last MiB of each file",
            "family": checkpoint.family,
            "model_type": checkpoint.model_type,
            "architecture": checkpoint.architecture,
        },
        "versions": versions,
        "device": device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **identity(measured_on),
        "chat_format": read_chat_format(checkpoint.path),
    }
