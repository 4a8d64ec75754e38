"""The gateway as users run it: `trt-mtp gateway` in a process, started again when it dies."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.clock import Clock
from trt_mtp.serve.processes import die_with_parent, free_ports

READY_TIMEOUT_S = 60
STALL_MIN_S = 1.0  # the default is longer, and the faults with it


class GatewayProcess:
    """`trt-mtp gateway` in front of `servers`, always on the same port."""

    def __init__(self, servers: Sequence[str], folder: Path, clock: Clock) -> None:
        """`folder` takes its log, its decision log and its state."""
        folder.mkdir(parents=True)
        self.port = free_ports({"grpc": 0})["grpc"]
        self.decision_log = folder / "decisions.jsonl"
        self.log = folder / "gateway.log"
        self.num_starts = 0
        self._command = [
            *(sys.executable, "-m", "trt_mtp", "gateway", "--json"),
            *(part for server in servers for part in ("--triton", server)),
            *("--stall-min-s", str(STALL_MIN_S)),
            *("--port", str(self.port)),
            *("--decision-log", str(self.decision_log)),
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
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, again where it died; returns when it takes requests."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        code = await asyncio.get_running_loop().run_in_executor(self._thread, self._stop)
        self._thread.shutdown()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def limit_files(self, max_bytes: int) -> None:
        """Files may not grow beyond `max_bytes`, from now on; -1 for no limit."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (max_bytes, hard))

    def _start(self) -> None:
        if self._process is not None:
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._clock.environment()},
                preexec_fn=die_with_parent(),
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # empty when it ended
        assert line, self.log.read_text()[-2000:]
        assert json.loads(line)["gateway"] == self.address
        self.num_starts += 1

    def _stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(READY_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code
