"""Variants for the CPU engine: the weights packed once, one record per draft length."""

import os
import platform
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.digest import TEXT_FILES, Progress, hash_checkpoint
from trt_mtp.build.layout import FORMAT
from trt_mtp.build.pack import pack_weights, packed_bytes, plan_tensors
from trt_mtp.build.store import (
    DIGESTS,
    SHARED,
    BuildResult,
    install_shared,
    install_variants,
    refuse_other_engines,
)
from trt_mtp.build.variant import (
    SCHEMA_VERSION,
    VariantRecord,
    fingerprint_of,
    identity,
    variant_name,
)
from trt_mtp.errors import InputError

LARGEST_DRAFT_LENGTH = 15  # a verify step has at most 16 rows
DEFAULT_MAX_SEQ_LEN = 4096


def build_cpu(
    checkpoint: Checkpoint,
    draft_lengths: Sequence[int],
    engines: Path,
    *,
    max_batch_size: int,
    max_seq_len: int | None,
    progress: Progress,
) -> BuildResult:
    """Build the variants in `engines`, which is locked by the caller.

    Raises InputError for a checkpoint or sizes that the CPU engine can't run.
    """
    refuse_other_engines(engines, "cpu")
    check_checkpoint(checkpoint)
    length = check_length(checkpoint, max_seq_len)
    num_bytes = packed_bytes(plan_tensors(checkpoint))  # also checks every tensor
    digest = hash_checkpoint(checkpoint, engines / DIGESTS, progress)
    key = fingerprint_of({"checkpoint": digest, "format": FORMAT})

    def write(folder: Path) -> None:
        pack_weights(checkpoint, folder, progress)
        for name in TEXT_FILES:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)

    install_shared(engines, key, num_bytes, write)
    common = common_record(checkpoint, digest) | {
        "max_batch_size": max_batch_size,
        "max_seq_len": length,
        "shared": f"../{SHARED}/{key}",
    }
    records = [
        VariantRecord(name=variant_name(draft_length), draft_length=draft_length, **common)
        for draft_length in draft_lengths
    ]
    return install_variants(engines, records)


def common_record(checkpoint: Checkpoint, digest: str) -> dict[str, Any]:
    """What the records of all draft lengths share."""
    made_from = {
        "path": str(checkpoint.path.resolve()),
        "sha256": digest,
        "family": checkpoint.family,
        "model_type": checkpoint.model_type,
        "architecture": checkpoint.architecture,
    }
    versions = {
        "trt_mtp": __version__,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
    }
    device = {"kind": "cpu", "name": cpu_name(), "count": os.cpu_count() or 1}
    measured_on = {
        "engine": "cpu",
        "checkpoint": digest,
        "precision": "float32",
        "weights_format": str(FORMAT),
        **versions,
        "device": str(device["name"]),
        "device_count": str(device["count"]),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": "cpu",
        "checkpoint": made_from,
        "versions": versions,
        "device": device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **identity(measured_on),
    }


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise InputError for what the CPU engine can't run."""
    where, text = checkpoint.path, checkpoint.text_config
    if checkpoint.is_moe:
        raise InputError(
            f"{where} is {checkpoint.family}: the cpu engine runs dense Qwen3.5, 3.6 and 3.8 "
            f"only; use --engine tensorrt-llm"
        )
    if checkpoint.quantization is not None:
        raise InputError(
            f"{where} is quantised ({checkpoint.quantization.method}): the cpu engine reads F32, "
            f"F16 and BF16 only; use the unquantised checkpoint or --engine tensorrt-llm"
        )
    if checkpoint.mtp.missing:
        raise InputError(
            f"{where} lacks {len(checkpoint.mtp.missing)} tensors of its MTP head, the first is "
            f"{checkpoint.mtp.missing[0]}; download the checkpoint again"
        )
    expected = {
        "mtp_num_hidden_layers": (1, None),
        "mtp_use_dedicated_embeddings": (False, None),
        "attention_bias": (False, None),
        "attn_output_gate": (True, None),
        "hidden_act": ("silu", None),
    }
    for key, allowed in expected.items():
        if text.get(key) not in allowed:
            raise InputError(
                f"{where / 'config.json'}: {key} is {text[key]!r}; "
                f"the cpu engine needs {allowed[0]!r}"
            )
    if not (where / "tokenizer.json").is_file():
        raise InputError(f"{where} has no tokenizer.json, which the cpu engine needs")


def check_length(checkpoint: Checkpoint, max_seq_len: int | None) -> int:
    """The longest sequence to build for, prompt and answer together, in tokens."""
    if max_seq_len is None:
        return min(checkpoint.context_length, DEFAULT_MAX_SEQ_LEN)
    if max_seq_len > checkpoint.context_length:
        raise InputError(
            f"--max-seq-len is {max_seq_len}, but the checkpoint was made for "
            f"{checkpoint.context_length} tokens"
        )
    return max_seq_len


def cpu_name() -> str:
    """The model name in /proc/cpuinfo, or else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
