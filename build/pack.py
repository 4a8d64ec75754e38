"""Packed weights of the CPU engine: `weights.bin` and, with each tensor's place, `weights.json`.

Matrices are stored in tiles of 64 columns (layout.py), those with the same input fused along `out`,
each 64-byte aligned. The trunk is float32. The MTP head's matrices are bfloat16: a draft has to be
cheap, and is checked by the trunk anyway.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.digest import Progress, hash_file
from trt_mtp.build.layout import FORMAT, TILE, tiled_size
from trt_mtp.build.tensors import TensorInfo
from trt_mtp.errors import InputError
from trt_mtp.files import open_regular, to_json

ALIGNMENT = 64
BLOCK_VALUES = 1 << 24  # of a tensor converted at once, which bounds the memory it takes
NUM_BYTES = {"float32": 4, "bfloat16": 2}

Floats = NDArray[np.float32]
Convert = Callable[[NDArray[Any]], Floats]


class Order(Enum):
    """How a tensor's values follow each other in the file."""

    KEPT = "as in the checkpoint"
    TRANSPOSED = "transposed"
    TILED = "transposed, in tiles"


@dataclass(frozen=True, slots=True)
class Packed:
    """One tensor to write: its sources, side by side, each [out, in] as in the checkpoint."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    order: Order
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Without the padding that aligns the next one."""
        is_tiled = self.order is Order.TILED
        size = tiled_size(*self.shape) if is_tiled else math.prod(self.shape)
        return size * NUM_BYTES[self.dtype]


def pack_weights(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write `weights.bin` and `weights.json` into `folder`.

    Raises InputError when a tensor is missing, its shape is not what config.json says, or it holds
    values that are not finite.
    """
    plan = plan_tensors(checkpoint)
    total, index, offset = packed_bytes(plan), {}, 0
    with (folder / "weights.bin").open("wb") as out:
        for packed in plan:
            progress("packing the weights", offset, total)
            for block in blocks_of(packed, checkpoint.tensors):
                write_values(out, block, packed.dtype)
            out.write(bytes(-packed.num_bytes % ALIGNMENT))
            index[packed.name] = {
                "offset": offset,
                "shape": list(packed.shape),
                "dtype": packed.dtype,
            }
            offset = out.tell()
    progress("packing the weights", total, total)
    values = {
        "schema_version": FORMAT,
        "tensors": index,
        "num_bytes": offset,
        "sha256": hash_file(folder / "weights.bin"),
    }
    (folder / "weights.json").write_text(to_json(values))


def packed_bytes(plan: list[Packed]) -> int:
    """The size of `weights.bin`."""
    return sum(-(-packed.num_bytes // ALIGNMENT) * ALIGNMENT for packed in plan)


def plan_tensors(checkpoint: Checkpoint) -> list[Packed]:
    """What to write, in order."""
    planner = Planner(checkpoint)
    hidden, vocab = planner.size("hidden_size"), planner.size("vocab_size")
    embed = f"{checkpoint.prefix}embed_tokens.weight"
    # with tied embeddings there may be a copy of them
    head = embed if checkpoint.is_tied else "lm_head.weight"
    planner.keep("embed_tokens", (vocab, hidden), embed)
    planner.fuse("lm_head", hidden, {head: vocab})
    for layer, kind in enumerate(checkpoint.layer_types):
        planner.add_layer(f"layers.{layer}.", f"{checkpoint.prefix}layers.{layer}.", kind)
    planner.keep("norm", (hidden,), f"{checkpoint.prefix}norm.weight")
    planner.add_layer("mtp.layers.0.", "mtp.layers.0.", "full_attention")
    planner.fuse("mtp.fc", 2 * hidden, {"mtp.fc.weight": hidden})
    planner.fuse("mtp.lm_head", hidden, {head: vocab})
    for name in ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding"):
        planner.keep(f"mtp.{name}", (hidden,), f"mtp.{name}.weight")
    return planner.plan


class Planner:
    """Collects the tensors to write and checks each source against config.json."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Nothing planned yet."""
        self.checkpoint = checkpoint
        self.plan: list[Packed] = []

    def size(self, key: str) -> int:
        """A size in config.json; raises InputError where it is missing."""
        value = self.checkpoint.text_config.get(key)
        if not isinstance(value, int) or value <= 0:
            file = self.checkpoint.path / "config.json"
            raise InputError(f"{file}: {key} is {value!r}, expected a positive integer")
        return value

    def keep(self, name: str, shape: tuple[int, ...], source: str) -> None:
        """A vector, or the embedding, as it is."""
        self.check(source, shape)
        self.plan.append(Packed(name, shape, (source,), Order.KEPT, "float32"))

    def fuse(self, name: str, size: int, outputs: Mapping[str, int]) -> None:
        """Matrices with an input of `size`, by source name and number of outputs."""
        for source, width in outputs.items():
            self.check(source, (width, size))
        dtype = "bfloat16" if name.startswith("mtp.") else "float32"
        shape = (size, sum(outputs.values()))
        self.plan.append(Packed(name, shape, tuple(outputs), Order.TILED, dtype))

    def check(self, source: str, shape: tuple[int, ...]) -> None:
        """Raise InputError unless the checkpoint has `source` in this shape."""
        info = self.checkpoint.tensors.get(source)
        if info is None:
            raise InputError(
                f"{self.checkpoint.path} has no tensor {source}, which the cpu engine needs; "
                f"export it under that name, or copy it from the model that it was made from"
            )
        if info.shape != shape:
            raise InputError(
                f"{info.file}: {source} has the shape {list(info.shape)}, "
                f"but config.json makes it {list(shape)}"
            )
        if info.dtype not in READERS:
            raise InputError(
                f"{info.file}: {source} is {info.dtype}; the cpu engine reads F32, F16 and BF16"
            )

    def add_layer(self, name: str, source: str, kind: str) -> None:
        """One decoder layer: mixer, MLP and norms."""
        hidden, inner = self.size("hidden_size"), self.size("intermediate_size")
        mixer = self.add_attention if kind == "full_attention" else self.add_deltanet
        mixer(name, source, hidden)
        gate, up = f"{source}mlp.gate_proj.weight", f"{source}mlp.up_proj.weight"
        self.fuse(f"{name}mlp.gate_up_proj", hidden, {gate: inner, up: inner})
        self.fuse(f"{name}mlp.down_proj", inner, {f"{source}mlp.down_proj.weight": hidden})
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self.keep(name + norm, (hidden,), f"{source}{norm}.weight")

    def add_attention(self, name: str, source: str, hidden: int) -> None:
        """Gated full attention; q_proj holds query and gate, interleaved per head."""
        name, source = f"{name}self_attn.", f"{source}self_attn."
        size, heads = self.size("head_dim"), self.size("num_attention_heads")
        keys = self.size("num_key_value_heads") * size
        widths = {"q_proj": 2 * heads * size, "k_proj": keys, "v_proj": keys}
        outputs = {f"{source}{part}.weight": width for part, width in widths.items()}
        self.fuse(f"{name}qkv_proj", hidden, outputs)
        self.fuse(f"{name}o_proj", heads * size, {f"{source}o_proj.weight": hidden})
        for norm in ("q_norm", "k_norm"):
            self.keep(name + norm, (size,), f"{source}{norm}.weight")

    def add_deltanet(self, name: str, source: str, hidden: int) -> None:
        """Gated DeltaNet."""
        name, source = f"{name}linear_attn.", f"{source}linear_attn."
        heads, size = self.size("linear_num_value_heads"), self.size("linear_value_head_dim")
        keys = self.size("linear_num_key_heads") * self.size("linear_key_head_dim")
        values, kernel = heads * size, self.size("linear_conv_kernel_dim")
        channels = 2 * keys + values
        widths = {"qkv": channels, "z": values, "b": heads, "a": heads}
        outputs = {f"{source}in_proj_{part}.weight": width for part, width in widths.items()}
        self.fuse(f"{name}in_proj", hidden, outputs)
        self.fuse(f"{name}out_proj", values, {f"{source}out_proj.weight": hidden})
        conv = f"{source}conv1d.weight"
        self.check(conv, (channels, 1, kernel))
        taps = (kernel, channels)
        self.plan.append(Packed(f"{name}conv1d", taps, (conv,), Order.TRANSPOSED, "float32"))
        self.keep(f"{name}norm", (size,), f"{source}norm.weight")
        for bias in ("dt_bias", "A_log"):
            self.keep(name + bias, (heads,), source + bias)


def blocks_of(packed: Packed, tensors: Mapping[str, TensorInfo]) -> Iterator[Floats]:
    """The values to write, some at a time."""
    sources = [Source(name, tensors[name]) for name in packed.sources]
    if packed.order is Order.TRANSPOSED:  # a convolution, which is small
        yield sources[0].rows(0, sources[0].num_rows).T
        return
    num_rows = sum(source.num_rows for source in sources)
    step = max(1, BLOCK_VALUES * num_rows // math.prod(packed.shape) // TILE) * TILE
    for start in range(0, num_rows, step):
        rows = fused_rows(sources, start, min(start + step, num_rows))
        yield in_tiles(rows) if packed.order is Order.TILED else rows


def fused_rows(sources: Sequence["Source"], start: int, stop: int) -> Floats:
    """Rows `start` to `stop` of the sources one below the other."""
    parts, before = [], 0
    for source in sources:
        first, last = max(start - before, 0), min(stop - before, source.num_rows)
        if first < last:
            parts.append(source.rows(first, last))
        before += source.num_rows
    return np.concatenate(parts)


def in_tiles(rows: Floats) -> Floats:
    """Outputs [n, in] as tiles [n / TILE, in, TILE], padded with zeros."""
    padded = np.pad(rows, ((0, -len(rows) % TILE), (0, 0)))
    return padded.reshape(-1, TILE, rows.shape[1]).transpose(0, 2, 1)


class Source:
    """One tensor of the checkpoint, mapped and converted to float32 piece by piece."""

    def __init__(self, name: str, info: TensorInfo) -> None:
        """Map the tensor; a convolution [channels, 1, kernel] counts as [channels, kernel]."""
        stored, convert = READERS[info.dtype]
        self._name, self._file = name, info.file
        self._convert: Convert = convert
        self.num_rows = info.shape[0]
        shape = (self.num_rows, math.prod(info.shape[1:]))
        self._values = open_values(info, stored).reshape(shape)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows `start` to `stop`; raises InputError for values that no model can compute with."""
        values = self._convert(np.ascontiguousarray(self._values[start:stop]))
        if not np.isfinite(values).all():
            raise InputError(
                f"{self._file}: {self._name} has values that are infinite or not a number, as "
                f"float16 makes of large ones: save the model again in bfloat16"
            )
        return values


def open_values(info: TensorInfo, stored: str) -> NDArray[Any]:
    """The values of one tensor, flat: mapped, or read where the file system maps no files.

    Some on a network or in user space don't. Raises InputError that names the file.
    """
    length = info.num_bytes // np.dtype(stored).itemsize
    with open_regular(info.file) as stream:
        try:
            return np.memmap(stream, stored, "r", info.offset, (length,))
        except OSError:
            stream.seek(info.offset)
        try:
            return np.frombuffer(stream.read(info.num_bytes), stored)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{info.file} can't be read: {reason}") from None


def from_bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """The float32 whose upper half are these bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def to_float32(values: NDArray[Any]) -> Floats:
    """From float16 or float32."""
    return values.astype(np.float32)


READERS: dict[str, tuple[str, Convert]] = {
    "F32": ("<f4", to_float32),
    "F16": ("<f2", to_float32),
    "BF16": ("<u2", from_bfloat16),
}


def write_values(out: BinaryIO, values: Floats, dtype: str) -> None:
    """Append `values` to the file, little-endian."""
    stored: NDArray[Any] = to_bfloat16(values) if dtype == "bfloat16" else values
    out.write(np.ascontiguousarray(stored).data)
