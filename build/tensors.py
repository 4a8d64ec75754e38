"""The tensors of a checkpoint, from safetensors headers alone.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data
(https://huggingface.co/docs/safetensors, "Format").
"""

import gc
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.errors import InputError
from trt_mtp.files import open_regular, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
MAX_DIMENSIONS = 64  # as NumPy has it; the time of a product of large numbers grows with its square
MAX_SHARDS = 99_999  # the most that a name can say
AGAIN = "download or export the checkpoint again"

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """Where one tensor lies; a tuple because large checkpoints have 300,000 of them."""

    dtype: str  # safetensors' name: BF16, F32, F8_E4M3, U8, …
    shape: tuple[int, ...]
    num_bytes: int
    file: Path
    offset: int  # of the first byte, from the start of the file


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint in `folder`, by name; no tensor data is read.

    Raises InputError for a missing shard, a file that is cut short or is not a safetensors file,
    a tensor that is in the index but not in its shard, and one that two files have.
    """
    index = folder / INDEX
    tensors: dict[str, TensorInfo] = {}
    with collector_paused():
        weight_map = weight_map_of(index) if index.exists() else {}
        for file in list_shards(folder, weight_map):
            add_tensors(tensors, file, weight_map)
        check_single_file(folder, weight_map)
    if not tensors.keys() >= weight_map.keys():
        name = min(weight_map.keys() - tensors.keys())
        raise InputError(f"{folder / weight_map[name]} lacks the tensor {name} of {INDEX}; {AGAIN}")
    return tensors


def add_tensors(tensors: dict[str, TensorInfo], file: Path, weight_map: Mapping[str, str]) -> None:
    """Add what `file` has, as far as the index doesn't say that another file has it."""
    for name, info in read_header(file):
        if weight_map.get(name, file.name) != file.name:
            continue
        if name in tensors:
            raise InputError(
                f"{file.parent}: {name} is in {tensors[name].file.name} and in {file.name}, and no "
                f"{INDEX} says which one counts; remove one of them"
            )
        tensors[name] = info


def check_single_file(folder: Path, weight_map: Mapping[str, str]) -> None:
    """Raise InputError for the whole model beside an index of shards: one of them is another model.

    transformers reads the single file then, vLLM the shards.
    """
    file = folder / SINGLE
    if not weight_map or SINGLE in weight_map.values() or not file.is_file():
        return
    name = next((name for name, _ in read_header(file) if name in weight_map), None)
    if name is not None:
        raise InputError(
            f"{folder}: {name} is in {SINGLE} and, by {INDEX}, in {weight_map[name]}; remove the "
            f"older of the two models"
        )


def read_unlisted(folder: Path, listed: Collection[Path]) -> Iterator[tuple[str, TensorInfo]]:
    """Every tensor of the safetensors files in `folder` that are not among `listed`.

    Raises InputError for a name that two of them have.
    """
    seen: dict[str, Path] = {}
    for file in sorted(set(safetensors_files(folder)) - set(listed)):
        for name, info in read_header(file):
            if name in seen:
                raise InputError(
                    f"{folder}: {name} is in {seen[name].name} and in {file.name}, neither of "
                    f"which {INDEX} lists; remove one of them"
                )
            seen[name] = file
            yield name, info


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: with 300,000 tensors it is a tenth of the time, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def list_shards(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    """The safetensors files of `folder`: those of the index, or else all there are."""
    if weight_map:
        names, source = sorted(set(weight_map.values())), INDEX
    else:
        names, source = all_shard_names(folder), "the other file names"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{folder} lacks {missing[0]}{more} (named by {source}); {AGAIN}")
    return [folder / name for name in names]


def all_shard_names(folder: Path) -> list[str]:
    """The *.safetensors in `folder`, with those that `-00001-of-00003` says should be there."""
    names = {file.name for file in safetensors_files(folder)}
    matches = [re.fullmatch(r"(.*-)\d{5}-of-(\d{5})\.safetensors", name) for name in names]
    models = {match.groups() for match in matches if match}
    num_shards = sum(int(total) for _, total in models)
    if num_shards > MAX_SHARDS:
        raise InputError(
            f"{folder} has files of {len(models)} models, which by their names are in "
            f"{num_shards:,} files; expected those of one model"
        )
    for stem, total in models:
        names |= {f"{stem}{n + 1:05}-of-{total}.safetensors" for n in range(int(total))}
    return sorted(names)


def safetensors_files(folder: Path) -> list[Path]:
    """The *.safetensors in `folder`; hidden ones are left out, such as macOS's `._` files."""
    return [file for file in folder.glob("*.safetensors") if not file.name.startswith(".")]


def weight_map_of(index: Path) -> dict[str, str]:
    """tensor name -> file name, of an index file."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map; {AGAIN}")
    for name in set(map(str, weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names {name!r}, which is not a safetensors file; {AGAIN}")
    return weight_map


def read_header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Name and place of each tensor in one safetensors file."""
    header, start, size = load_header(file)
    spans: list[tuple[int, int]] = []
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # each shape once in memory
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict) and metadata.get("format") == "mlx":
        raise written_by_mlx(file)
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            first, last = entry["data_offsets"]
            num_bytes = last - first
            numbers = (first, last, *shape)
            is_valid = (
                len(shape) <= MAX_DIMENSIONS
                and {*map(type, numbers)} == {int}
                and min(numbers) >= 0
                and num_bytes * 8 == math.prod(shape) * BITS[dtype]
            )
        except (KeyError, TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise InputError(
                f"{file}: the entry of {name} ({json.dumps(entry)[:120]}) is not valid; {AGAIN}"
            )
        if start + last > size:
            raise InputError(
                f"{file} is cut short: it has {size:,} bytes and {name} ends at "
                f"{start + last:,}; {AGAIN}"
            )
        spans.append((first, last))
        shape = shapes.setdefault(shape, shape)
        yield name, TensorInfo(dtype, shape, num_bytes, file, start + first)
    check_covered(file, spans, size - start)


def check_covered(file: Path, spans: list[tuple[int, int]], num_bytes: int) -> None:
    """Raise InputError unless the tensors are one after the other, to the file's end.

    The format asks for it, and the library that other engines read it with refuses the rest:
    what lies elsewhere was cut, or written over, by a copy or a download that went on.
    """
    at = 0
    for first, last in sorted(spans):
        if first != at:
            what = "that no tensor has" if first > at else "that two tensors have"
            raise InputError(f"{file} has bytes {what} ({abs(first - at):,} of them); {AGAIN}")
        at = last
    if at != num_bytes:
        raise InputError(f"{file} has {num_bytes - at:,} bytes behind its last tensor; {AGAIN}")


def written_by_mlx(file: Path) -> InputError:
    """The sentence for tensors as MLX writes them."""
    return InputError(
        f"{file} was written by MLX, which keeps norms, convolutions and quantised weights in "
        f"another form; use the original checkpoint's tensors"
    )


def load_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header of one safetensors file, where its data start, and the size of the file."""
    with open_regular(file) as stream:
        size = file.stat().st_size
        head = stream.read(8)
        if head.startswith(b"version "):  # as in "version https://git-lfs…"
            raise InputError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull`")
        length = int.from_bytes(head, "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{file} is cut short or no safetensors file: it has {size:,} bytes and "
                f"its header needs {8 + length:,}; {AGAIN}"
            )
        if length > MAX_HEADER:
            raise InputError(f"{file} has a header of {length:,} bytes, more than safetensors has")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):  # UnicodeDecodeError is one too
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file} is not a safetensors file: its header is not JSON; {AGAIN}")
    return header, 8 + length, size


def find_copy(folder: Path, files: Collection[Path] | None = None) -> tuple[Path, str] | None:
    """A file, and a tensor in it that INDEX says another file has; None if there is none.

    A loader that follows the index leaves it out; one that loads `files` whole may take it. They
    are by default those of TensorRT-LLM's HfWeightLoader: all but a consolidated model.
    """
    index = folder / INDEX
    if not index.exists():
        return None
    weight_map = weight_map_of(index)
    if files is None:
        files = [file for file in safetensors_files(folder) if "consolidated" not in file.name]
    for file in sorted(files):
        for name, _ in read_header(file):
            if weight_map.get(name, file.name) != file.name:
                return file, name
    return None
