"""The hash of a checkpoint's content, with a cache so that unchanged files are read once."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.text_files import text_files
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import open_regular, read_json, to_json, write_atomic

Progress = Callable[[str, int, int], None]
"""What is done, and how many bytes of how many."""


def checkpoint_files(checkpoint: Checkpoint) -> list[Path]:
    """Every file that decides what an engine built from `checkpoint` answers."""
    texts = [checkpoint.path / name for name in text_files(checkpoint.path)]
    tensors = {info.file for info in checkpoint.tensors.values()}
    return texts + sorted(tensors)


def hash_checkpoint(checkpoint: Checkpoint, cache: Path, progress: Progress) -> str:
    """sha256 over names and contents of the checkpoint's files.

    A file whose path, size and time of change are in `cache` is not read again.
    """
    files = checkpoint_files(checkpoint)
    known, seen = read_cache(cache), {}
    total = sum(file.stat().st_size for file in files)
    done, digest = 0, hashlib.sha256()
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            progress("hashing the checkpoint", done, total)
        seen[key] = known.get(key) or hash_file(file)
        done += status.st_size
        digest.update(f"{file.name}:{seen[key]}\n".encode())
    if seen.keys() - known.keys():
        progress("hashing the checkpoint", total, total)
        with suppress(TrtMtpError):  # a read-only folder: nothing to build may be left there
            write_atomic(cache, to_json(seen))
    return digest.hexdigest()


def read_cache(cache: Path) -> dict[str, str]:
    """The cache's content, empty where it is missing or damaged."""
    try:
        value = read_json(cache)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def hash_file(file: Path) -> str:
    """sha256 of one file."""
    try:
        with open_regular(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise TrtMtpError(f"can't read {file}: {error.strerror or error}") from error
