"""Engine variants on disk: a folder and its record, `variant.json`.

The record is written last and atomically, so a folder without one is not a variant.
"""

import hashlib
import json
import re
import types
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from trt_mtp import __version__
from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, nearest, read_json, to_json, write_atomic

RECORD = "variant.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """What a variant was built from, and what was verified of it."""

    schema_version: int
    name: str
    engine: str  # "cpu", "tensorrt-llm" or "vllm"
    draft_length: int
    checkpoint: dict[str, Any]  # path, sha256, family, model_type, architecture
    versions: dict[str, str]  # of trt_mtp, python and what runs the engine
    device: dict[str, Any]  # kind, name and count of what it was built for
    max_batch_size: int
    max_seq_len: int
    shared: str | None  # folder of files that all variants use, relative to the variant's
    created: str  # ISO 8601, UTC
    fingerprint: str  # equal where a profile measured on one variant is valid for the other
    measured_on: dict[str, str] = field(default_factory=dict)  # the parts behind the fingerprint
    details: dict[str, Any] = field(default_factory=dict)  # what only this kind of engine has
    chat_format: dict[str, Any] = field(default_factory=dict)  # see build/chat_format.py
    verification: dict[str, Any] = field(default_factory=dict)  # empty: not verified


@dataclass(frozen=True, slots=True)
class EngineVariant:
    """One deployable engine: a checkpoint at one draft length."""

    folder: Path
    record: VariantRecord

    @property
    def name(self) -> str:
        """k0, k1, …"""
        return self.record.name

    @property
    def draft_length(self) -> int:
        """Tokens drafted per step; 0 means no speculation."""
        return self.record.draft_length

    @property
    def engine(self) -> str:
        """The kind that runs it, "cpu", "tensorrt-llm" or "vllm"."""
        return self.record.engine


def variant_name(draft_length: int) -> str:
    """The folder of the variant at `draft_length`."""
    return f"k{draft_length}"


def fingerprint_of(values: object) -> str:
    """A short hash of JSON-like values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(measured_on: dict[str, str]) -> dict[str, Any]:
    """The fields of a record that say what a profile is valid for: the parts and their hash."""
    return {"fingerprint": fingerprint_of(measured_on), "measured_on": measured_on}


def read_variant(folder: Path) -> EngineVariant:
    """The variant in `folder`.

    Raises InputError when there is none, when its record is damaged, and when another version of
    trt-mtp built it.
    """
    file = folder / RECORD
    if not file.is_file():
        raise InputError(f"{folder} has no {RECORD}, so it is not a variant; run `trt-mtp build`")
    record = record_from_json(file, read_json(file, SMALL))
    built_by = str(record.versions.get("trt_mtp"))
    if built_by.split(".")[:2] != __version__.split(".")[:2]:
        raise InputError(
            f"{folder} was built by trt-mtp {built_by} and this is {__version__}; "
            f"run `trt-mtp build` again"
        )
    return EngineVariant(folder, record)


def list_variants(engines_folder: Path) -> tuple[EngineVariant, ...]:
    """The variants in `engines_folder`, by draft length.

    Raises InputError when there is none or one can't be read.
    """
    if not engines_folder.is_dir():
        raise InputError(f"{engines_folder} is not a folder; run `trt-mtp build` to make it")
    variants = [read_variant(file.parent) for file in engines_folder.glob(f"[!.]*/{RECORD}")]
    if not variants:
        raise InputError(f"{engines_folder} has no variants; run `trt-mtp build`")
    return tuple(sorted(variants, key=lambda variant: (variant.draft_length, variant.name)))


def write_variant(folder: Path, record: VariantRecord) -> EngineVariant:
    """Write `record` into `folder`, which makes it a variant."""
    write_atomic(folder / RECORD, to_json(asdict(record)))
    return EngineVariant(folder, record)


def with_verification(variant: EngineVariant, result: dict[str, Any]) -> EngineVariant:
    """The same variant with `result` in its record, on disk too."""
    return write_variant(variant.folder, replace(variant.record, verification=result))


def record_from_json(file: Path, value: Any) -> VariantRecord:
    """A checked record; raises InputError that names the key that is wrong."""
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{file}: schema_version is {value.get('schema_version')!r}, expected "
            f"{SCHEMA_VERSION}; run `trt-mtp build` again"
        )
    known = [item.name for item in fields(VariantRecord)]
    for key in value:
        if key not in known:
            raise InputError(f"{file}: unknown key {key}{nearest(key, known)}")
    for key, kind in get_type_hints(VariantRecord).items():
        if key not in value:
            raise InputError(f"{file}: the key {key} is missing; run `trt-mtp build` again")
        if not is_of_type(value[key], kind):
            raise InputError(f"{file}: {key} is {value[key]!r}, which is of the wrong type")
    record = VariantRecord(**value)
    _check_values(file, record)
    return record


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_DRAFT_LENGTH = 1024  # more is no draft length; engines have limits of their own


def _check_values(file: Path, record: VariantRecord) -> None:
    """Names become folders and options: none leads out of the place where it belongs."""
    arguments = record.details.get("llm_args", "-")
    shared = Path(record.shared or ".")
    is_right = {
        "name": NAME.fullmatch(record.name),
        "draft_length": 0 <= record.draft_length <= MAX_DRAFT_LENGTH,
        "max_batch_size": 0 < record.max_batch_size < 1 << 20,
        "max_seq_len": 0 < record.max_seq_len < 1 << 30,
        "shared": not shared.is_absolute() and ".." not in shared.parts[1:],
        "details": isinstance(arguments, str) and (arguments == "-" or NAME.fullmatch(arguments)),
    }
    for key, is_so in is_right.items():
        if not is_so:
            raise InputError(
                f"{file}: {key} is {getattr(record, key)!r:.80}, which no build writes; "
                f"run `trt-mtp build` again"
            )


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether `value` fits the annotation `kind`, of those that VariantRecord has.

    >>> is_of_type("../.shared/1f", str | None), is_of_type(True, int)
    (True, False)
    """
    if isinstance(kind, types.UnionType):
        return any(is_of_type(value, part) for part in get_args(kind))
    expected = get_origin(kind) or kind
    return isinstance(value, expected) and not (expected is int and isinstance(value, bool))
