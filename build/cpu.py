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
from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.cpu_check import check_all_read, check_checkpoint, check_head
from trt_mtp.build.digest import Progress, hash_checkpoint
from trt_mtp.build.layout import FORMAT
from trt_mtp.build.pack import Packed, pack_weights, packed_bytes, plan_tensors
from trt_mtp.build.store import (
    DIGESTS,
    SHARED,
    BuildResult,
    install_shared,
    install_variants,
    refuse_other_engines,
)
from trt_mtp.build.text_files import text_files
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
    num_bytes = packed_bytes(check_everything(checkpoint))
    length = check_length(checkpoint, max_seq_len)
    digest = hash_checkpoint(checkpoint, engines / DIGESTS, progress)
    key = fingerprint_of({"checkpoint": digest, "format": FORMAT})

    def write(folder: Path) -> None:
        pack_weights(checkpoint, folder, progress)
        for name in text_files(checkpoint.path):
            (folder / name).parent.mkdir(exist_ok=True)
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


def check_everything(checkpoint: Checkpoint) -> list[Packed]:
    """What to pack; raises InputError for a checkpoint that the CPU engine can't run."""
    from trt_mtp.build.text_check import check_text  # jinja2: not in the light base

    check_checkpoint(checkpoint)
    plan = plan_tensors(checkpoint)  # checks every tensor
    check_all_read(checkpoint, plan)
    check_head(checkpoint)
    check_text(checkpoint.path, checkpoint.vocab_size)
    return plan


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
        "chat_format": read_chat_format(checkpoint.path),
    }


MIN_SEQ_LEN = 16  # of --max-seq-len: a few tokens of prompt, and as many of an answer


def check_length(checkpoint: Checkpoint, max_seq_len: int | None) -> int:
    """The longest sequence to build for, prompt and answer together, in tokens."""
    if checkpoint.context_length < MIN_SEQ_LEN:
        raise InputError(
            f"{checkpoint.path / 'config.json'}: max_position_embeddings is "
            f"{checkpoint.context_length}; the cpu engine needs {MIN_SEQ_LEN}"
        )
    if max_seq_len is None:
        return min(checkpoint.context_length, DEFAULT_MAX_SEQ_LEN)
    unused = checkpoint.unused_context
    if max_seq_len > checkpoint.context_length:
        raise InputError(
            f"--max-seq-len is {max_seq_len}, but the checkpoint was made for "
            f"{checkpoint.context_length} tokens{unused and f'; {unused}'}"
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
