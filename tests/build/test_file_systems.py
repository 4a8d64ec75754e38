"""File systems that can't do all, as on a network or in user space: it works, or a sentence."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.tiny_model import make_checkpoint
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.weights import load_weights

Cli = Callable[..., CliResult]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_no_locks_are_one_sentence(
    cli: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Two builds at a time in one folder would spoil each other's files."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    result = cli("build", checkpoint, "--engine", "cpu", "-o", tmp_path / "engines", "--no-verify")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"trt-mtp: can't lock {tmp_path}/engines/.lock: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("lengths", "code"), [("0,1", 0), ("0,1,2", 1)])
def test_a_read_only_folder_of_variants(
    cli: Cli,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: str,
    code: int,
) -> None:
    """Where all is built, nothing has to be written; else the reason is told."""
    build = ["build", checkpoint, "--engine", "cpu", "-o", tmp_path / "engines", "--no-verify"]
    assert cli(*build, "--draft-lengths", "0,1").code == 0
    (tmp_path / "engines" / ".digests.json").unlink()  # the checkpoint lay elsewhere then
    before = sorted((tmp_path / "engines").rglob("*"))
    opened = os.open

    def read_only(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if str(path).startswith(str(tmp_path / "engines")) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", read_only)
    result = cli(*build, "--draft-lengths", lengths)
    assert result.code == code, result.err
    assert ("Read-only file system" in result.err) == bool(code)
    assert [path for path in before if not path.exists()] == []


@pytest.mark.parametrize(("number", "code"), [(errno.EINVAL, 0), (errno.EIO, 1)])
def test_folders_that_are_not_synced(
    cli: Cli,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    """A file system that syncs files alone is as safe as it can be; a broken disk is told."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    result = cli("build", checkpoint, "--engine", "cpu", "-o", tmp_path / "engines", "--no-verify")
    assert result.code == code, result.err
    assert ("Input/output error" in result.err) is (code == 1)


def no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be mapped, as some file systems on a network or in user space have it."""

    def mmap(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("mmap.mmap", mmap)


def test_weights_that_can_not_be_mapped_are_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build takes the same from them; variants, which share theirs by mapping, say so."""
    folder = make_checkpoint(tmp_path / "c", num_shards=2)
    packed = []
    for name in ("mapped", "read"):
        result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / name, "--no-verify")
        assert result.code == 0, result.err
        packed += [file.read_bytes() for file in tmp_path.glob(f"{name}/.shared/*/weights.bin")]
        no_maps(monkeypatch)
    assert len(packed) == 2
    assert packed[0] == packed[1]
    (shared,) = (tmp_path / "read" / ".shared").iterdir()
    with pytest.raises(InputError, match=r"weights\.bin can't be mapped: No such device; put the"):
        load_weights(shared, 16)
