"""Ctrl-C: every command ends within seconds, and leaves no process and no traceback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gateway_fixtures import raw_stream, script_request
from tests.programs import read_line
from tests.variants import build_engines
from trt_mtp.interrupts import EXIT_CODE
from trt_mtp.serve.processes import children, descendants, is_alive
from trt_mtp.serve.triton import TritonServer

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
IN_TIME_S = 9.0  # five, and what a loaded machine takes; SIGTERM's clean-ups would take ten
ENDS = {0, EXIT_CODE, -signal.SIGINT}  # the last where it comes while the interpreter ends
CUT, CUT_SENTENCE = 1, "stopped, and cut answers that were still in flight"
NO_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2's first frame of a server


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant without speculation."""
    return build_engines(tmp_path_factory.mktemp("interrupts"), [0])


class Command:
    """A program that is interrupted, with all that it started."""

    def __init__(self, *arguments: str | Path) -> None:
        """`python` with `arguments`; what it says is read from `process.stdout`."""
        path = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def wait_for(self, text: str) -> None:
        """Read what it says until `text` comes."""
        while text not in self.said:
            line = read_line(self.process)
            assert line, self.said
            self.said += line

    def interrupt(self, times: int) -> float:
        """Send Ctrl-C to its whole group, as a terminal does; seconds until all of it is gone."""
        below, start = descendants(self.process.pid), time.monotonic()
        for _ in range(times):
            os.killpg(self.process.pid, signal.SIGINT)
            time.sleep(0.2)
            if self.process.poll() is not None:
                break
        self.process.wait(DEADLINE_S)
        while any(is_alive(pid) for pid in below):
            assert time.monotonic() < start + DEADLINE_S, below
            time.sleep(0.02)
        return time.monotonic() - start


LOST = """
import asyncio
import os
import signal
from trt_mtp.interrupts import EXIT_CODE, ending_in_time, run_async

class Callback:
    def __del__(self):  # as in a callback of gRPC, what is raised here is printed and ignored
        os.kill(os.getpid(), signal.SIGINT)

async def main():
    Callback()
    try:
        await asyncio.sleep(600)
    finally:
        print("cleaned up", flush=True)

try:
    with ending_in_time():
        run_async(main())
except KeyboardInterrupt:
    raise SystemExit(EXIT_CODE)
"""


@contextmanager
def command(*arguments: str | Path) -> Iterator[Command]:
    """A Command, ended at the end with all that it started."""
    running = Command(*arguments)
    with running.process:
        try:
            yield running
        finally:
            for pid in (*descendants(running.process.pid), running.process.pid):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def assert_ends(running: Command, times: int) -> None:
    """It ends in time and quietly; with 1 if it had to cut answers, which it says."""
    took_s = running.interrupt(times)
    assert running.process.stdout is not None
    said = running.said + running.process.stdout.read()
    assert "Traceback" not in said, said
    ends = {CUT} if said.rstrip().endswith(CUT_SENTENCE) else ENDS
    assert running.process.returncode in ends, said
    assert took_s < IN_TIME_S


def test_an_interrupt_in_a_callback_is_not_lost(tmp_path: Path) -> None:
    """It ends what the loop runs, whose clean-up is done, and nothing is printed."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    with command(script) as running:
        said, _ = running.process.communicate(timeout=DEADLINE_S)
        assert (said, running.process.returncode) == ("cleaned up\n", EXIT_CODE)


@pytest.mark.parametrize("times", [1, 2])
def test_serve_whose_triton_hangs(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A Triton that can't be asked whether it is idle holds nobody up; its files are removed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with command("-m", "trt_mtp", "serve", engines) as running:
        running.wait_for("Ctrl-C stops")
        (triton,) = children(running.process.pid)
        os.kill(triton, signal.SIGSTOP)
        assert_ends(running, times)
    assert not list(tmp_path.glob("trt-mtp-serve-*"))
    assert not list(Path("/dev/shm").glob(f"trt_mtp_{running.process.pid}_*"))


@pytest.mark.parametrize("times", [1, 2])
def test_serve_that_loads(engines: Path, times: int) -> None:
    """It can be interrupted before it is ready."""
    with command("-m", "trt_mtp", "serve", engines) as running:
        running.wait_for("Triton: 0 of 1 models loaded")
        assert_ends(running, times)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gateway_with_an_answer_in_flight(
    doubles: TritonServer, workers: str, times: int
) -> None:
    """An answer that lasts for ever gets no grace period."""
    arguments = ("--triton", doubles.grpc_url, "--port", "0", "--workers", workers)
    with command("-m", "trt_mtp", "gateway", *arguments) as running:
        running.wait_for("gateway at ")
        url = running.said.partition("gateway at ")[2].partition(":")
        with raw_stream(f"{url[0]}:{url[2].partition(':')[0]}") as stream:
            stream.send(script_request(tokens=1_000_000, delay_s=0.05))
            stream.receive()
            assert_ends(running, times)


@pytest.mark.parametrize("times", [1, 2])
def test_up_whose_triton_hangs(checkpoint: Path, engines: Path, times: int) -> None:
    """Gateway and Triton share the time that there is."""
    arguments = ("--draft-lengths", "0", "-o", engines.parent / "up")
    with command("-m", "trt_mtp", "up", checkpoint, *arguments) as running:
        running.wait_for("Ctrl-C stops")
        (triton,) = (pid for pid in children(running.process.pid) if children(pid))
        os.kill(triton, signal.SIGSTOP)
        assert_ends(running, times)


@pytest.mark.parametrize("times", [1, 2])
def test_verify(engines: Path, times: int) -> None:
    """The process that runs a variant ends with it."""
    with command("-m", "trt_mtp", "verify", engines) as running:
        running.wait_for("running ")
        assert_ends(running, times)


@pytest.mark.parametrize("times", [1, 2])
def test_accept_that_asks(checkpoint: Path, engines: Path, tmp_path: Path, times: int) -> None:
    """What it did is kept, and its servers end with it."""
    skipped = ("--skip", "build", "--skip", "verify", "--skip", "doctor", "--engines", engines)
    arguments = (checkpoint, "-o", tmp_path, *skipped)
    with command("-m", "trt_mtp", "accept", *arguments) as running:
        running.wait_for("smoke: at most")
        assert_ends(running, times)
        assert running.process.returncode == EXIT_CODE
    assert '"step":"serve","status":"passed"' in (tmp_path / "journal.jsonl").read_text()
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["bench", "calibrate", "gateway"])
def test_a_server_that_says_nothing(tmp_path: Path, name: str, times: int) -> None:
    """Clients of a server that accepts and doesn't answer can be interrupted."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        arguments: dict[str, tuple[str | Path, ...]] = {
            "bench": ("--url", url, "--model", "qwen_mtp"),
            "calibrate": ("--url", url, "--out", tmp_path / "profile.json"),
            "gateway": ("--triton", url, "--port", "0"),
        }
        with command("-m", "trt_mtp", name, *arguments[name]) as running:
            silent.settimeout(DEADLINE_S)
            with silent.accept()[0] as connection:
                connection.sendall(NO_SETTINGS)  # without them clients soon give up
                assert_ends(running, times)


STUCK = """
import subprocess, sys, time
from trt_mtp import interrupts
interrupts.IN_ORDER_S = float(sys.argv[1])
with interrupts.ending_in_time():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        print("started", flush=True)
        time.sleep(600)
    finally:
        while True:
            try:
                print("cleaning up", flush=True)
                time.sleep(600)
            except KeyboardInterrupt:
                pass
"""

BROKEN_OFF = """
import subprocess, time
from trt_mtp.interrupts import ending_in_time
with ending_in_time():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        print("started", flush=True)
        time.sleep(600)
    finally:
        print("cleaning up", flush=True)
        time.sleep(600)
"""


def test_a_clean_up_that_hangs_is_ended() -> None:
    """After its time the program and what it started are killed."""
    with command("-c", STUCK, "0.1") as running:
        running.wait_for("started")
        assert_ends(running, 1)
        assert running.process.returncode == EXIT_CODE


def test_a_second_ctrl_c_waits_for_no_clean_up() -> None:
    """However long the clean-ups may take after the first one."""
    with command("-c", STUCK, "100000") as running:
        running.wait_for("started")
        os.kill(running.process.pid, signal.SIGINT)
        running.wait_for("cleaning up")
        assert_ends(running, 1)
        assert running.process.returncode == EXIT_CODE


def test_a_clean_up_that_is_broken_off_leaves_nothing_running() -> None:
    """What it would have ended is killed."""
    with command("-c", BROKEN_OFF) as running:
        running.wait_for("started")
        os.kill(running.process.pid, signal.SIGINT)
        running.wait_for("cleaning up")
        running.interrupt(1)
        assert running.process.returncode == -signal.SIGINT


def test_who_ignores_ctrl_c_goes_on_doing_so() -> None:
    """A command that a script starts in the background is not ended by its terminal."""
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from trt_mtp.interrupts import ending_in_time\n"
        "with ending_in_time():\n    print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == "True\n"
