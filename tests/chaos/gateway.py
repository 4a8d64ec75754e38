"""The gateway as users run it: `trt-mtp gateway` with worker processes, always on one port."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.chaos.clock import Clock
from tests.programs import command_line
from trt_mtp.parent import die_with_parent
from trt_mtp.serve.processes import children, free_ports

T = TypeVar("T")
NUM_WORKERS = 2
END_TIMEOUT_S = 60
STALL_MIN_S = 1.0  # the default is longer, and the faults with it
WATCH_S = 0.1


class GatewayProcess:
    """`trt-mtp gateway` in front of `servers`."""

    def __init__(self, servers: Sequence[str], folder: Path, clock: Clock) -> None:
        """`folder` takes its log, its decision logs and its state."""
        folder.mkdir(parents=True)
        self.port = free_ports({"grpc": 0})["grpc"]
        self._folder = folder
        self._command = [
            *(sys.executable, "-m", "trt_mtp", "gateway", "--json"),
            *(part for server in servers for part in ("--triton", server)),
            *("--port", str(self.port), "--reuse-port", "--workers", str(NUM_WORKERS)),
            *("--stall-min-s", str(STALL_MIN_S)),
            *("--decision-log", str(folder / "decisions.jsonl")),
            *("--state", str(folder / "state.json")),
        ]
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway")

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that watches the workers."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """The workers' process ids."""
        return [pid for pid in children(self.pid) if _is_worker(pid)]

    def decision_logs(self) -> list[Path]:
        """One file for each worker."""
        return sorted(self._folder.glob("decisions*.jsonl"))

    async def start(self) -> None:
        """Start it; returns when it takes requests."""
        self._process = await self._in_thread(self._spawn)

    async def replace(self) -> None:
        """Start another one on the same port, then end this one with SIGTERM."""
        before = self._process
        assert before is not None
        self._process = await self._in_thread(self._spawn)
        before.send_signal(signal.SIGTERM)
        await self._in_thread(lambda: _wait(before))

    async def stop(self) -> None:
        """SIGTERM, and the end of its processes."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGTERM)
            await self._in_thread(lambda: _wait(process))
        self._thread.shutdown()

    async def kill(self) -> None:
        """SIGKILL of everything, and start again."""
        process = self._process
        assert process is not None
        for pid in (self.pid, *self.workers()):
            os.kill(pid, signal.SIGKILL)
        await self._in_thread(lambda: _wait(process))
        await self.start()

    async def kill_worker(self, pid: int) -> None:
        """SIGKILL of a worker; returns when there is another in its place."""
        os.kill(pid, signal.SIGKILL)
        while pid in (workers := self.workers()) or len(workers) < NUM_WORKERS:
            await asyncio.sleep(WATCH_S)

    def limit_files(self, max_bytes: int) -> None:
        """Files may not grow beyond `max_bytes`, from now on; -1 for no limit."""
        for pid in (self.pid, *self.workers()):
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (max_bytes, hard))

    def _spawn(self) -> "subprocess.Popen[bytes]":
        log = self._folder / "gateway.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **self._clock.environment()},
                preexec_fn=die_with_parent(),
            )
        assert process.stdout is not None
        line = process.stdout.readline()  # empty when it ended
        assert line, log.read_text()[-2000:]
        assert json.loads(line)["gateway"] == self.address
        return process

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _wait(process: "subprocess.Popen[bytes]") -> None:
    process.wait(END_TIMEOUT_S)
    assert process.stdout is not None
    process.stdout.close()


def _is_worker(pid: int) -> bool:
    return b"spawn_main" in command_line(pid)
