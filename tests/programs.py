"""Programs that tests start: what waits for them ends, on a loaded machine too."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 240.0  # less than a test's deadline in pyproject.toml, so that the wait itself is told


@contextmanager
def within(process: "subprocess.Popen[Any]", timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """What is done with a process ends: it is killed after `timeout_s`, and when a test fails."""
    is_late = threading.Event()

    def kill() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(timeout_s, kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        timer.join(timeout_s)
    assert not is_late.is_set(), f"{process.args!r} took longer than {timeout_s:.0f} s"


def read_line(process: "subprocess.Popen[Any]") -> Any:
    """The next line of a process's stdout, empty when it ended."""
    assert process.stdout is not None
    with within(process):
        return process.stdout.readline()


@contextmanager
def ready_line(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The ready line of a `trt-mtp` that runs until the end."""
    command = [sys.executable, "-m", "trt_mtp", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield json.loads(read_line(process))
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def join(thread: threading.Thread, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for the end of a thread."""
    thread.join(timeout_s)
    assert not thread.is_alive(), f"{thread.name} did not end within {timeout_s:.0f} s"


def command_line(pid: int) -> bytes:
    """The arguments of a process, each with a zero after it; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def program(name: str) -> str:
    """A program of Debian's package prometheus; fails with what to install."""
    found = shutil.which(name)
    assert found, f"{name} is missing: apt-get install --no-install-recommends prometheus"
    return found
