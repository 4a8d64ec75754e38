"""One variant compiles, the others wait for it: as long as it is worth waiting."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from trt_mtp.serve import warm_up
from trt_mtp.serve.warm_up import one_at_a_time


def is_free(folder: Path) -> bool:
    """Can the lock be had?"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_one_at_a_time(tmp_path: Path) -> None:
    """The lock is held inside, and given back."""
    with one_at_a_time(tmp_path):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_who_holds_the_lock_keeps_nothing_from_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user who may read the folder can hold it for ever."""
    monkeypatch.setattr(warm_up, "COMPILE_S", 0.3)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with one_at_a_time(tmp_path):
            assert not is_free(tmp_path)
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then every variant compiles for itself."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with one_at_a_time(tmp_path):
        pass
