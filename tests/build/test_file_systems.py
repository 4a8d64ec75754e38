"""File systems that can't do all, as on a network or in user space: it works, or a sentence."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult

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
