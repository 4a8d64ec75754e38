"""The folder of built variants: one build at a time, nothing half-written, nothing stale.

engines/k0/variant.json         a variant, see variant.py
engines/.shared/<hash>/         files that variants share, named by the hash of what they are from
engines/.lock, .digests.json    one build at a time; hashes of files already read
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from trt_mtp.build.variant import (
    RECORD,
    EngineVariant,
    VariantRecord,
    record_from_json,
    variant_name,
    write_variant,
)
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import SMALL, allowed, open_in_group, read_json, sync_folder

SHARED = ".shared"
DIGESTS = ".digests.json"
TEMPORARY = ".tmp-"
HASH = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build did."""

    variants: tuple[EngineVariant, ...]
    built: tuple[str, ...]  # names
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]  # built from something else before


@contextmanager
def locked(engines: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the only right to build in `engines`; `on_wait` is called once if another build has it.

    The lock goes with the process, however that ends.
    """
    try:
        engines.mkdir(parents=True, exist_ok=True)
        stream = _lock_file(engines / ".lock")
    except OSError as error:
        raise TrtMtpError(f"can't write to {engines}: {error.strerror or error}") from error
    with stream:
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                # no limit: the other build may take hours, and its lock goes with its process
                fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise TrtMtpError(
                f"can't lock {engines / '.lock'}: {error.strerror or error}, as on a network file "
                f"system without locks; choose a folder elsewhere with -o"
            ) from None
        for left in (engines / SHARED).glob(f"{TEMPORARY}*"):  # by a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _lock_file(file: Path) -> FileIO:
    """The file that is locked; in a read-only folder, where all may be built, only to read."""
    try:
        return FileIO(file, "w", opener=open_in_group)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not os.access(file, os.R_OK):
            raise
    return FileIO(file, "r")


def install_shared(engines: Path, key: str, num_bytes: int, write: Callable[[Path], None]) -> Path:
    """The folder `.shared/<key>`, filled by `write` unless it is there already.

    `num_bytes` is about what `write` will take; too little space is refused before it starts.
    """
    folder = engines / SHARED / key
    if folder.is_dir():
        return folder
    free = shutil.disk_usage(engines).free
    if num_bytes > free:
        raise TrtMtpError(
            f"{engines} has {free / 1e9:.2f} GB free and the packed weights need "
            f"{num_bytes / 1e9:.2f} GB; free space or choose another folder with -o"
        )
    temporary = None
    try:
        folder.parent.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
        write(temporary)
        sync_files(temporary)
        os.rename(temporary, folder)
    except BaseException as error:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise TrtMtpError(f"can't write {folder}: {error.strerror or error}") from error
        raise
    sync_folder(folder.parent)
    return folder


def sync_files(folder: Path) -> None:
    """Bring all in `folder`, and the folder, to the disk; readable for whom the umask lets.

    What a link leads to is left as it is.
    """
    for file in folder.iterdir():
        if file.is_symlink():
            continue
        if file.is_dir():  # a checkpoint's named chat templates
            sync_files(file)
            continue
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        file.chmod(allowed(0o644))
    folder.chmod(allowed(0o755))
    sync_folder(folder)


def install_variants(engines: Path, records: Sequence[VariantRecord]) -> BuildResult:
    """Write each record that is not there yet, then remove what was built from something else.

    Variants of other draft lengths stay if they have the fingerprint of the new ones.
    """
    variants, built = [], []
    for record in records:
        folder = engines / record.name
        existing = existing_record(folder)
        if existing is not None and is_same(existing, record):
            variants.append(EngineVariant(folder, existing))
            continue
        variants.append(write_variant(folder, record))
        built.append(record.name)
    unchanged = tuple(record.name for record in records if record.name not in built)
    removed = remove_stale(engines, {record.fingerprint for record in records})
    return BuildResult(tuple(variants), tuple(built), unchanged, removed)


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """While a variant is written: if that fails, a folder that is new is gone."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def existing_record(folder: Path) -> VariantRecord | None:
    """The record in `folder`, None where there is none that this version can read."""
    try:
        return record_from_json(folder / RECORD, read_json(folder / RECORD, SMALL))
    except InputError:
        return None


def is_same(existing: VariantRecord, record: VariantRecord) -> bool:
    """Whether both describe one build, whenever made and wherever the checkpoint lay."""

    def essence(of: VariantRecord) -> VariantRecord:
        checkpoint = {key: value for key, value in of.checkpoint.items() if key != "path"}
        return replace(of, created="", verification={}, checkpoint=checkpoint)

    return essence(existing) == essence(record)


def remove_stale(engines: Path, fingerprints: set[str]) -> tuple[str, ...]:
    """Remove variants with another fingerprint, and shared folders that no variant uses."""
    removed, used = [], set()
    for file in sorted(engines.glob(f"[!.]*/{RECORD}")):
        record = existing_record(file.parent)
        if record is None or record.fingerprint not in fingerprints:
            file.unlink()  # first, so that what is left of the folder is no variant
            shutil.rmtree(file.parent, ignore_errors=True)
            removed.append(file.parent.name)
        elif record.shared:
            used.add((file.parent / record.shared).resolve())
    for folder in (engines / SHARED).glob("*"):
        if HASH.fullmatch(folder.name) and folder.resolve() not in used:
            shutil.rmtree(folder, ignore_errors=True)
    return tuple(removed)


def refuse_other_engines(engines: Path, engine: str) -> None:
    """Raise InputError when `engines` holds variants for another engine than `engine`."""
    for file in sorted(engines.glob(f"[!.]*/{RECORD}")):
        record = existing_record(file.parent)
        if record is not None and record.engine != engine:
            raise InputError(
                f"{engines} holds {record.engine} variants ({record.name}); choose another folder "
                f"for those of {engine} with -o"
            )


def reference_folder(engines: Path, variants: Sequence[EngineVariant]) -> Path:
    """A variant without speculation, to compare `variants` with.

    Where there is none, a hidden one is written: it shares their files and is not listed.
    """
    record = variants[0].record
    existing = existing_record(engines / variant_name(0))
    if existing is not None and existing.fingerprint == record.fingerprint:
        return engines / variant_name(0)
    folder = engines / ".reference"
    return write_variant(folder, replace(record, name=variant_name(0), draft_length=0)).folder
