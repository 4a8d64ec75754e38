"""A stuck test ends at its deadline, with all threads' stacks and without what it started."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gateway_fixtures import wait_until
from trt_mtp.serve.processes import is_alive

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 240.0

CONFTEST = """
from tests.run_guard import RunGuard

def pytest_sessionstart(session):
    session.config.pluginmanager.register(RunGuard(session.config, limit_s={limit_s}))
"""

STUCK = """
import ctypes, subprocess, sys, threading
from pathlib import Path
import pytest

def never():
    threading.Event().wait()

def in_c_code():
    lock, libc = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
    for _ in range(2):
        libc.pthread_mutex_lock(lock)

@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path("pid").write_text(str(process.pid))
    beside = threading.Thread(target=never, name="beside", daemon=True)
    beside.start()
    yield
    {cleaning_up}
    process.kill()
    process.wait()

def test_stuck(server):
    {waiting}

def test_other():
    pass
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A test that waits and is cleaned up like this, and when it counts as stuck."""

    waiting: str
    cleaning_up: str = "pass"
    deadline_s: float = 240.0  # of the test
    limit_s: float = 240.0  # of the watchdog


@dataclass(frozen=True, slots=True)
class Ended:
    """How a test run ended, and the process that its test started."""

    code: int
    out: str
    err: str
    child: int


CASES = {
    "stuck": Case("never()", deadline_s=5.0),
    "stuck in C code": Case("in_c_code()", limit_s=5.0),
    "stuck when cleaned up": Case("raise OSError", "never()", limit_s=5.0),
    "leaves a process": Case("pass", "return"),
}


def start(case: Case, num_workers: int, folder: Path) -> "subprocess.Popen[str]":
    """A run of that test and of another one; without workers it is one process."""
    (folder / "conftest.py").write_text(CONFTEST.format(limit_s=case.limit_s))
    text = STUCK.format(waiting=case.waiting, cleaning_up=case.cleaning_up)
    (folder / "test_it.py").write_text(text)
    options = ["-o", f"timeout={case.deadline_s}", "-p", "no:cacheprovider", "-n", str(num_workers)]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module", params=[0, 1], ids=["alone", "a worker"])
def num_workers(request: pytest.FixtureRequest) -> int:
    """Of pytest-xdist."""
    return int(request.param)


@pytest.fixture(scope="module")
def runs(num_workers: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All cases, run at the same time."""
    folders = {name: tmp_path_factory.mktemp("run") for name in CASES}
    processes = {name: start(CASES[name], num_workers, folders[name]) for name in CASES}
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=TIMEOUT_S)
        child = int((folders[name] / "pid").read_text())
        found[name] = Ended(process.returncode, out, err, child)
    return found


def test_a_stuck_test_fails_and_the_others_run(runs: dict[str, Ended]) -> None:
    """Both threads' stacks are printed, and fixtures end what they started."""
    ended = runs["stuck"]
    assert ended.code == pytest.ExitCode.TESTS_FAILED, ended.out
    assert "1 failed, 1 passed" in ended.out
    assert "Timeout (>5.0s) from pytest-timeout" in ended.out
    assert "Stack of beside" in ended.out
    assert "def test_stuck" in ended.out
    assert not is_alive(ended.child)
    assert ended.err == ""


@pytest.mark.parametrize(
    ("name", "where"), [("stuck in C code", "in_c_code"), ("stuck when cleaned up", "server")]
)
def test_what_no_exception_reaches_ends_its_process(
    runs: dict[str, Ended], num_workers: int, name: str, where: str
) -> None:
    """All stacks are printed, and nothing survives; another worker runs the other tests."""
    ended = runs[name]
    if num_workers:
        assert ended.code == pytest.ExitCode.TESTS_FAILED, ended.out + ended.err
        assert "crashed while running 'test_it.py::test_stuck'" in ended.out
        assert "1 passed" in ended.out
    else:
        assert ended.code == -signal.SIGABRT, ended.out + ended.err
    assert re.search(r"no part of a test ended for 5 s: process \d+ is aborted", ended.err)
    assert ended.err.count("most recent call first") >= 2
    assert f"in {where}" in ended.err
    assert "in never" in ended.err
    wait_until(lambda: not is_alive(ended.child))


def test_what_a_test_leaves_running_fails_the_run_and_is_ended(runs: dict[str, Ended]) -> None:
    """The run names it, though every test passed."""
    ended = runs["leaves a process"]
    assert ended.code == pytest.ExitCode.TESTS_FAILED
    assert "2 passed" in ended.out
    assert re.search(r"tests left running:\s+\d+ .*time.sleep\(3600\)", ended.err)
    wait_until(lambda: not is_alive(ended.child))
