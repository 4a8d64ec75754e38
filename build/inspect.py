"""A checkpoint described, for people and for scripts."""

from typing import Any

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.quantization import Quantization
from trt_mtp.build.tensor_names import described
from trt_mtp.build.tensors import INDEX


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `trt-mtp inspect --json` prints."""
    mtp, bytes_by_dtype = checkpoint.mtp, checkpoint.bytes_by_dtype
    return {
        "schema_version": 1,
        "path": str(checkpoint.path),
        "family": checkpoint.family,
        "architecture": checkpoint.architecture,
        "model_type": checkpoint.model_type,
        "num_parameters": checkpoint.num_parameters,
        "num_layers": checkpoint.num_layers,
        "vocab_size": checkpoint.vocab_size,
        "context_length": checkpoint.context_length,
        "num_bytes": sum(bytes_by_dtype.values()),
        "bytes_by_dtype": bytes_by_dtype,
        "num_files": len({info.file for info in checkpoint.tensors.values()}),
        "num_tensors": len(checkpoint.tensors),
        "foreign_prefixes": list(checkpoint.foreign_prefixes),
        "rope_type": checkpoint.rope.kind,
        "quantization": describe_quantization(checkpoint.quantization),
        "mtp": {
            "num_hidden_layers": mtp.num_layers,
            "num_bytes": mtp.num_bytes,
            "tensors": {
                name: {"dtype": info.dtype, "shape": list(info.shape)}
                for name, info in mtp.tensors.items()
            },
            "unlisted_files": list(checkpoint.unlisted),
            "missing": list(mtp.missing),
            "unexpected": list(mtp.unexpected),
        },
    }


def describe_quantization(quantization: Quantization | None) -> dict[str, Any] | None:
    """The quantisation's keys, None for a plain checkpoint."""
    if quantization is None:
        return None
    return {
        "method": quantization.method,
        "tool": quantization.tool,
        "source": quantization.source,
        "kv_cache_dtype": quantization.kv_cache_dtype,
        "excluded": list(quantization.excluded),
    }


def render(checkpoint: Checkpoint) -> str:
    """The same for people."""
    mtp, quantization = checkpoint.mtp, checkpoint.quantization
    layers = [f"{n} {kind.replace('_', ' ')}" for kind, n in checkpoint.num_layers.items()]
    dtypes = [f"{dtype} {size(n)}" for dtype, n in checkpoint.bytes_by_dtype.items()]
    num_files = len({info.file for info in checkpoint.tensors.values()})
    context = f"{checkpoint.context_length:,} tokens"
    quantised = f"{quantization.method} ({quantization.source})" if quantization else "none"
    rows = {
        "checkpoint": str(checkpoint.path),
        "family": f"{checkpoint.family} ({checkpoint.architecture}, {checkpoint.model_type})",
        "parameters": count(checkpoint.num_parameters),
        "layers": ", ".join(layers),
        "vocabulary": f"{checkpoint.vocab_size:,}",
        "context": "; ".join(filter(None, (context, checkpoint.unused_context))),
        "on disk": f"{size(checkpoint.num_bytes)} in {num_files} files: {', '.join(dtypes)}",
        "quantisation": quantised,
        "MTP head": f"{mtp.num_layers} layer, {len(mtp.tensors)} tensors, {size(mtp.num_bytes)}",
    }
    if checkpoint.unlisted:
        rows["MTP head in"] = f"{', '.join(checkpoint.unlisted)} (not in {INDEX})"
    if checkpoint.foreign_prefixes:
        rows["named"] = described(checkpoint.foreign_prefixes)
    lines = [f"{name:<13} {value}" for name, value in rows.items()]
    shown = list(mtp.tensors.items())
    if len(shown) > 40:  # experts one by one
        shown = [(name, info) for name, info in shown if ".experts." not in name]
        lines.append(f"  {len(mtp.tensors) - len(shown):,} tensors of experts, and")
    lines += [f"  {name} {info.dtype} {list(info.shape)}" for name, info in shown]
    for label, names in (("missing", mtp.missing), ("unexpected", mtp.unexpected)):
        lines += [f"  {label}: {name}" for name in names[:20]]
        if len(names) > 20:
            lines.append(f"  {label}: {len(names) - 20} more")
    return "\n".join(lines)


def size(num_bytes: int) -> str:
    """Bytes in decimal units.

    >>> size(30_900_000_000)
    '30.9 GB'
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def count(number: int) -> str:
    """A number of parameters, as models are named by it.

    >>> count(27_360_000_000)
    '27.36 B'
    """
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:,}"
