"""A function in a process of its own, run by this Python or by another one."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.apart import call_apart
from trt_mtp.serve.divergence import first_difference
from trt_mtp.serve.engine import open_engine


def call(function: object, *arguments: object, timeout_s: float = 60.0) -> object:
    """`function` by this Python."""
    return call_apart(None, function, *arguments, what="a test", timeout_s=timeout_s)  # type: ignore[arg-type]


def test_a_result_comes_back() -> None:
    """From our own Python, and from one that is named."""
    assert call(first_difference, b"abc", b"abd") == 2
    assert call(os.getpid) != os.getpid()
    named = call_apart(sys.executable, first_difference, b"ab", b"xb", what="it", timeout_s=60)
    assert named == 0


def test_the_working_folder_has_no_modules_of_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody set PYTHONSAFEPATH: it may be a stranger's checkpoint."""
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert call(first_difference, b"abc", b"abd") == 2


def test_a_sentence_comes_back(tmp_path: Path) -> None:
    """What a user can cause is raised here as it was there."""
    with pytest.raises(InputError, match=r"variant\.json"):
        call(open_engine, tmp_path)


def test_an_end_without_a_result() -> None:
    """A process that is killed, and one that takes too long, are said to be so and are gone."""
    with pytest.raises(
        TrtMtpError, match=f"the process of a test ended with code -{signal.SIGKILL}"
    ):
        call(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(TrtMtpError, match="a test took longer than 1 s"):
        call(time.sleep, 60.0, timeout_s=1.0)


def test_nothing_is_left_of_it() -> None:
    """What the function started ends with it, as engines have processes of their own."""
    seconds = 1_000_000 + os.getpid()  # told from everybody else's
    with pytest.raises(TrtMtpError, match="a test took longer than 1 s"):
        call(os.system, f"sleep {seconds}", timeout_s=1.0)
    commands = (file for file in Path("/proc").glob("[0-9]*/cmdline"))
    assert not [file for file in commands if str(seconds).encode() in read(file)]


def read(file: Path) -> bytes:
    """What a process was called with; nothing of one that has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def no_thread() -> None:
    """What Python says where no thread can be started."""
    raise RuntimeError("can't start new thread")


def test_a_limit_of_processes_comes_back_as_a_sentence() -> None:
    """It is no fault of what ran."""
    with pytest.raises(TrtMtpError, match="raise the limit"):
        call(no_thread)
