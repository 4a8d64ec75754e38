"""How much memory a variant needs beside others: measured if possible, else estimated."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trt_mtp.build.variant import EngineVariant

# An interpreter with the CPU engine and no weights, allowance: 150 MB private was measured for a
# python-backend process with torch, which is larger.
PROCESS_BYTES = 150 * 10**6


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one variant: its own, and files that it shares with variants of the same build."""

    own_bytes: int = 0
    shared_bytes: int = 0
    shared_folder: Path | None = None
    source: str = "unknown"  # "measured" (trt-mtp verify), "estimated" (trt-mtp build) or "files"


def footprint(variant: EngineVariant) -> Footprint:
    """The memory of `variant`: per GPU for TensorRT-LLM, on the host for the CPU engine."""
    record = variant.record
    measured = record.verification.get("measured") or {}
    if measured.get("gpu_bytes"):
        return Footprint(measured["gpu_bytes"], source="measured")
    if "memory" in record.details:
        parts = record.details["memory"]
        names = [n for n in parts if n.endswith("_bytes") and n != "gpu_bytes"]
        return Footprint(sum(int(parts[name] or 0) for name in names), source="estimated")
    if record.shared is None:
        return Footprint(_folder_bytes(variant.folder), source="files")
    shared = (variant.folder / record.shared).resolve()
    shared_bytes = _folder_bytes(shared)
    host_bytes = measured.get("host_bytes")
    if host_bytes:
        return Footprint(max(host_bytes - shared_bytes, 0), shared_bytes, shared, "measured")
    return Footprint(PROCESS_BYTES, shared_bytes, shared, "files")


def total_bytes(footprints: Iterable[Footprint]) -> int:
    """The bytes of all together; shared files count once."""
    own, shared = 0, {}
    for one in footprints:
        own += one.own_bytes
        if one.shared_folder is not None:
            shared[one.shared_folder] = one.shared_bytes
    return own + sum(shared.values())


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
