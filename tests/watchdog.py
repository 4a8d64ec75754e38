"""Ends a test run that is stuck beyond its tests' own deadlines, and whatever a run leaves behind.

pytest-timeout fails a stuck test with an exception in the main thread, once. That doesn't reach a
main thread in C code, nor what hangs while the failed test is cleaned up. This is a process of its
own, which does: the run sends it a byte when a test begins and when a part of it ended. Each worker
of pytest-xdist has one, and the process that started the workers.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT_S = 420.0  # for one part of a test; more than the deadline of a test in pyproject.toml
LIMIT_SHARE = 1.4  # of a test's deadline, where a run has another one
ENDING_S = 5.0  # for who sees that its parent was killed
DUMP_S = 20.0  # for the stacks to be printed
TRACKER = "multiprocessing.resource_tracker"
VARIABLE = "TRT_MTP_TEST_RUN"  # in the environment of every process that a run starts


class Watchdog:
    """The process that watches this one; everything started from now on belongs to the run."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        """Start it."""
        self._mark = os.environ[VARIABLE] = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), self._mark, str(limit_s)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run
        )

    def beat(self) -> None:
        """Say that the run goes on."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), b".")
        except BrokenPipeError:
            raise RuntimeError("the tests' watchdog was ended from outside") from None

    def left(self) -> list[str]:
        """The commands of what this run started and did not end, or that don't end in a moment.

        Python's own resource tracker, which multiprocessing starts, ends with this process.
        """
        deadline = time.monotonic() + ENDING_S
        while (left := self._left_now()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _left_now(self) -> list[str]:
        commands = {pid: _command(pid) for pid in _marked(self._mark, self._process.pid)}
        return [f"{pid} {text}" for pid, text in commands.items() if TRACKER not in text]

    def stop(self) -> None:
        """End it, and all that is left of the run."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(2 * DUMP_S)


def _marked(mark: str, but: int) -> list[int]:
    """The living processes with this mark in their environment; a dead one's can't be read."""
    wanted, found = f"{VARIABLE}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_marked = wanted in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_marked and int(folder.name) != but:
            found.append(int(folder.name))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return "(it has just ended)"


def _kill(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _watch(run: int, limit_s: float) -> bool:
    """Wait for the end of process `run`; False when no byte came from it for `limit_s`.

    Before the first byte tests are collected, for which it has LIMIT_S at least.
    """
    heard_at, allowed_s = time.monotonic(), max(limit_s, LIMIT_S)
    while os.getppid() == run:
        if select.select([0], [], [], 1.0)[0]:
            if not os.read(0, 1 << 16):
                return True
            heard_at, allowed_s = time.monotonic(), limit_s
        if time.monotonic() - heard_at > allowed_s:
            return False
    return True


def _main(run: int, mark: str, limit_s: float) -> None:
    if not _watch(run, limit_s):
        print(
            f"\nno part of a test ended for {limit_s:.0f} s: process {run} is aborted",
            file=sys.stderr,
        )
        _kill([run], signal.SIGABRT)  # pytest has faulthandler print all threads' stacks
        deadline = time.monotonic() + DUMP_S
        while os.getppid() == run and time.monotonic() < deadline:
            time.sleep(0.1)
        if os.getppid() == run:
            _kill([run], signal.SIGKILL)
    deadline = time.monotonic() + DUMP_S
    while (pids := _marked(mark, os.getpid())) and time.monotonic() < deadline:
        _kill(pids, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
