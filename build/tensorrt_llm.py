"""Variants for NVIDIA servers: planned for one TensorRT-LLM version, then written.

A TensorRT-LLM variant is a folder with what its server needs: LLM-API arguments, environment,
launch command. The PyTorch backend has no compiled form to write (docs/nvidia.md).
"""

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.checkpoint_dtypes import cache_dtype, checkpoint_dtype, state_dtype
from trt_mtp.build.digest import checkpoint_files
from trt_mtp.build.gdn_replay import fitting_plan
from trt_mtp.build.gpus import Gpu
from trt_mtp.build.memory import (
    MemoryEstimate,
    estimate,
    largest_batch,
    memory_json,
    require_fit,
)
from trt_mtp.build.model_shape import shape_of
from trt_mtp.build.mtp_head import MODULE
from trt_mtp.build.preflight import Finding, preflight, variant_facts
from trt_mtp.build.store import (
    BuildResult,
    existing_record,
    is_same,
    refuse_other_engines,
    remove_stale,
    whole_or_gone,
)
from trt_mtp.build.tensor_names import described
from trt_mtp.build.tensors import find_copy
from trt_mtp.build.trtllm_config import (
    TrtllmOptions,
    check_options,
    devices_of,
    llm_args,
    memory_plan,
    replay_plan,
    yaml_text,
)
from trt_mtp.build.trtllm_launch import (
    environment,
    environment_text,
    serve_command,
    shell_command,
)
from trt_mtp.build.trtllm_version import Version
from trt_mtp.build.variant import (
    RECORD,
    SCHEMA_VERSION,
    EngineVariant,
    VariantRecord,
    fingerprint_of,
    identity,
    variant_name,
    write_variant,
)
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import open_regular, write_atomic

ENGINE = "tensorrt-llm"
LLM_ARGS_FILE = "llm_args.yaml"
ENVIRONMENT_FILE = "environment"
LAUNCH_FILE = "launch.sh"
AUTOTUNER_FOLDER = Path(".shared") / "autotuner"
UNQUANTIZED_DTYPES = ("BF16", "F16", "F32")
SAMPLE_BYTES = 1 << 20  # of each end of each file: a checkpoint of terabytes is not read through


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """One variant before it is written."""

    name: str
    draft_length: int
    folder: Path
    llm_args: Mapping[str, Any]
    environment: Mapping[str, str]
    command: tuple[str, ...]
    memory: MemoryEstimate
    largest_batch: int | None  # with every request at full length; None without a GPU
    findings: tuple[Finding, ...]

    @property
    def shell_command(self) -> str:
        """The variables and the command, as one line to paste."""
        return shell_command(self.environment, list(self.command))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep it from working."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def as_json(self) -> dict[str, Any]:
        """The variant as `trt-mtp build --json` prints it."""
        return {
            "name": self.name,
            "draft_length": self.draft_length,
            "llm_args": dict(self.llm_args),
            "environment": dict(self.environment),
            "command": self.shell_command,
            "memory": memory_json(self.memory, self.largest_batch),
            "findings": [finding.as_json() for finding in self.findings],
        }


def options_for(
    checkpoint: Checkpoint, version: Version, gpu: Gpu | None, **chosen: Any
) -> TrtllmOptions:
    """Options with what the checkpoint decides filled in; `chosen` are fields of TrtllmOptions.

    Raises InputError for options that can't be combined, and for a head that is incomplete.
    """
    if checkpoint.mtp.missing:
        raise InputError(
            f"{checkpoint.path} lacks {checkpoint.mtp.missing[0]} and so can't draft; "
            "download the original checkpoint again"
        )
    options = TrtllmOptions(
        version=version,
        checkpoint=checkpoint.path.resolve(),
        shape=shape_of(checkpoint),
        checkpoint_dtype=checkpoint_dtype(checkpoint),
        checkpoint_digest=checkpoint_digest(checkpoint),
        state_dtype=state_dtype(checkpoint),
        cache_dtype=cache_dtype(checkpoint),
        gpu=gpu,
        **chosen,
    )
    check_options(options)
    return options


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """A short hash of names, types and shapes of all tensors, which kernel choices depend on."""
    lines = sorted(f"{n} {t.dtype} {t.shape}" for n, t in checkpoint.tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def is_head_quantized(checkpoint: Checkpoint) -> bool:
    """Whether a matrix of the MTP head is in less than 16 bits."""
    return any(
        len(tensor.shape) > 1 and tensor.dtype not in UNQUANTIZED_DTYPES
        for tensor in checkpoint.mtp.tensors.values()
    )


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the preflight rules ask about a checkpoint."""
    return {
        "family": checkpoint.family,
        "is_moe": checkpoint.is_moe,
        "checkpoint_dtype": checkpoint_dtype(checkpoint),
        "mtp_head_quantized": is_head_quantized(checkpoint),
        **hazard_facts(checkpoint),
    }


def hazard_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts that are there only where they matter: names, files, formats, rotary embeddings."""
    quantization, rope = checkpoint.quantization, checkpoint.rope
    facts: dict[str, Any] = {}
    if quantization is not None and quantization.unloadable:
        facts["unloadable"] = quantization.unloadable
    if checkpoint.foreign_prefixes:
        facts["foreign_prefixes"] = described(checkpoint.foreign_prefixes)
    if checkpoint.text_class:
        facts |= {"architecture": checkpoint.architecture, "text_class": checkpoint.text_class}
    if checkpoint.unlisted:
        facts["unlisted"] = ", ".join(checkpoint.unlisted)
    if (copy := find_copy(checkpoint.path)) is not None:
        facts |= {"copied_in": copy[0].name, "copied": copy[1]}
    if quantization is not None and not is_head_quantized(checkpoint):
        facts["head_undeclared"] = not quantization.excludes(MODULE)
    if rope.kind != "default":
        facts["rope_type"] = rope.kind
    return facts


def plan_variants(
    checkpoint: Checkpoint, options: TrtllmOptions, draft_lengths: Sequence[int], engines: Path
) -> tuple[PlannedVariant, ...]:
    """One variant for each draft length, to be written below `engines`.

    Raises InputError for an option that the version refuses, DoesNotFitError if a variant needs
    more memory than the GPU has.
    """
    model = model_facts(checkpoint)
    if options.quantize:
        model["checkpoint_dtype"] = options.quantize
    if options.gpu:
        model["gpu.sm"] = options.gpu.sm
    devices = devices_of(options, draft_lengths)
    return tuple(
        plan_variant(options, length, engines, model, devices.get(length))
        for length in draft_lengths
    )


def plan_variant(
    options: TrtllmOptions,
    draft_length: int,
    engines: Path,
    model: Mapping[str, Any],
    devices: str | None,
) -> PlannedVariant:
    """The variant that drafts `draft_length` tokens, on `devices` if they are given."""
    folder = engines.resolve() / variant_name(draft_length)
    args = llm_args(options, draft_length)
    variables = environment(options, args, engines.resolve() / AUTOTUNER_FOLDER)
    if devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = devices
    facts = variant_facts(options.version, args, variables, model)
    plan = memory_plan(options, draft_length, args)
    findings = preflight(options.version, facts)
    batch = None
    if options.gpu is None:
        memory = estimate(plan, None)
    else:
        plan, rollback = fitting_plan(plan, replay_plan(options, draft_length, args), options.gpu)
        memory = require_fit(plan, options.gpu)
        findings += rollback
        batch = largest_batch(plan, options.gpu, full_length=True)
        findings += tuple(memory_findings(memory, plan.max_batch_size))
    if options.shape.host_bytes:
        findings += (host_table(options.shape.host_bytes),)
    return PlannedVariant(
        name=variant_name(draft_length),
        draft_length=draft_length,
        folder=folder,
        llm_args=args,
        environment=variables,
        command=tuple(serve_command(options, folder / LLM_ARGS_FILE)),
        memory=memory,
        largest_batch=batch,
        findings=findings,
    )


def memory_findings(memory: MemoryEstimate, max_batch_size: int) -> Iterable[Finding]:
    """What the estimate means for the batch."""
    if memory.full_length_requests < max_batch_size:
        yield Finding(
            "kv-cache-small",
            "info",
            f"the KV cache holds {memory.kv_cache_tokens} tokens, enough for "
            f"{memory.full_length_requests} requests of full length at once; more of them wait",
            "trt-mtp's estimate",
        )


def host_table(num_bytes: int) -> Finding:
    """That a table stays in the host's memory."""
    return Finding(
        "host-table",
        "info",
        f"its n-gram table of {num_bytes / 1e9:.0f} GB stays in pinned memory of the host; the "
        "guide asks for 128 GiB (BF16) or 96 GiB (FP8, NVFP4)",
        "docs/source/deployment-guide/deployment-guide-for-qwen3.8-flash-next-on-trtllm.md "
        "@866679de in NVIDIA/TensorRT-LLM",
    )


def require_no_errors(variants: Iterable[PlannedVariant]) -> None:
    """Raise TrtMtpError when a variant has a finding that keeps it from working."""
    for variant in variants:
        for finding in variant.errors:
            raise TrtMtpError(f"{variant.name}: {finding.message} ({finding.source})")


def with_checkpoint(options: TrtllmOptions, folder: Path) -> TrtllmOptions:
    """`options` for another copy of the checkpoint, for instance a quantised one."""
    return replace(options, checkpoint=folder.resolve())


def write_variants(
    variants: Sequence[PlannedVariant],
    checkpoint: Checkpoint,
    options: TrtllmOptions,
    engines: Path,
) -> BuildResult:
    """Write every planned variant below `engines`; what is there and the same stays.

    Raises TrtMtpError when one of them could not work, InputError when `engines` has variants of
    another engine.
    """
    require_no_errors(variants)
    refuse_other_engines(engines, ENGINE)
    digest = sampled_digest(checkpoint)
    written, built = [], []
    for variant in variants:
        record = record_of(variant, checkpoint, options, digest)
        existing = existing_record(variant.folder)
        if existing is not None and is_same(existing, record):
            written.append(EngineVariant(variant.folder, existing))
        else:
            with whole_or_gone(variant.folder):
                write_files(variant, options)
                written.append(write_variant(variant.folder, record))
            built.append(variant.name)
    unchanged = tuple(variant.name for variant in variants if variant.name not in built)
    removed = remove_stale(engines, {variant.record.fingerprint for variant in written})
    return BuildResult(tuple(written), tuple(built), unchanged, removed)


def write_files(variant: PlannedVariant, options: TrtllmOptions) -> None:
    """Write what a variant's server reads; without its record it is not a variant yet."""
    folder = variant.folder
    (folder / RECORD).unlink(missing_ok=True)
    header = f"{variant.name} for TensorRT-LLM {options.version}, written by trt-mtp {__version__}"
    write_atomic(folder / LLM_ARGS_FILE, yaml_text(variant.llm_args, header))
    write_atomic(folder / ENVIRONMENT_FILE, environment_text(variant.environment))
    write_atomic(folder / LAUNCH_FILE, f"#!/bin/sh\n# {header}\nexec {variant.shell_command}\n")
    (folder / LAUNCH_FILE).chmod(0o755)
    tuner = Path(variant.environment["TLLM_AUTOTUNER_CACHE_PATH"])
    tuner.parent.mkdir(parents=True, exist_ok=True)


def record_of(
    variant: PlannedVariant, checkpoint: Checkpoint, options: TrtllmOptions, digest: str
) -> VariantRecord:
    """The record of a variant; what a profile depends on is in its fingerprint, K is not."""
    device = {
        "kind": "gpu",
        "name": options.gpu.name if options.gpu else "unknown",
        "count": options.tensor_parallel,
    }
    cache = variant.llm_args["kv_cache_config"]
    schedule = variant.llm_args.get("speculative_config", {}).get("draft_len_schedule") or {}
    lengths = {str(bound): length for bound, length in schedule.items()}  # as JSON has them
    measured_on = {
        "engine": ENGINE,
        "checkpoint": digest,
        "precision": options.quantize or options.checkpoint_dtype,
        "tensorrt_llm": str(options.version),
        "device": str(device["name"]),
        "device_count": str(options.tensor_parallel),
        "expert_parallel": str(options.expert_parallel),
        "kv_cache_dtype": str(cache.get("dtype", "auto")),
        "state_dtype": str(cache.get("mamba_ssm_cache_dtype", options.state_dtype)),
    }
    return VariantRecord(
        schema_version=SCHEMA_VERSION,
        name=variant.name,
        engine=ENGINE,
        draft_length=variant.draft_length,
        checkpoint={
            "path": str(options.checkpoint),
            "sha256": digest,
            "hashed": "names, sizes, first and last MiB of each file",
            "family": checkpoint.family,
            "model_type": checkpoint.model_type,
            "architecture": checkpoint.architecture,
        },
        versions={
            "trt_mtp": __version__,
            "python": platform.python_version(),
            "tensorrt_llm": str(options.version),
        },
        device=device,
        max_batch_size=variant.llm_args["max_batch_size"],
        max_seq_len=variant.llm_args["max_seq_len"],
        shared=None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **identity(measured_on),
        chat_format=read_chat_format(checkpoint.path),
        details={
            "llm_args": LLM_ARGS_FILE,
            "llm_args_hash": fingerprint_of(dict(variant.llm_args)),
            **({"draft_len_schedule": lengths} if lengths else {}),
            "environment": dict(variant.environment),
            "command": variant.shell_command,
            "memory": memory_json(variant.memory, variant.largest_batch),
            "findings": [finding.as_json() for finding in variant.findings],
        },
    )


def sampled_digest(checkpoint: Checkpoint) -> str:
    """sha256 over names, sizes and both ends of the checkpoint's files."""
    digest = hashlib.sha256()
    for file in checkpoint_files(checkpoint):
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(SAMPLE_BYTES)
            stream.seek(max(0, size - SAMPLE_BYTES))
            digest.update(f"{file.name} {size}\n".encode() + head + stream.read())
    return digest.hexdigest()
