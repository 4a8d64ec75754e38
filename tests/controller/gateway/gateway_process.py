"""`trt-mtp gateway` as a process of its own."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.json_outputs import check_output
from tests.programs import read_line


class Process:
    """`trt-mtp gateway` as a process."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Start it and wait for its JSON line; stderr goes to `log`."""
        command = [sys.executable, "-m", "trt_mtp", "gateway", "--json", *arguments]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        self._log = log
        line = read_line(self.process)
        if not line:
            self.end()
        assert line, self.log
        check_output("gateway", line.decode())
        self.ready: dict[str, Any] = json.loads(line)

    @property
    def log(self) -> str:
        """What it said on stderr so far."""
        return self._log.read_text(errors="backslashreplace")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal, unless it ended; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def gateway_process(log: Path, *arguments: str) -> Iterator[Process]:
    """A Process that is gone at the end."""
    process = Process(log, *arguments)
    try:
        yield process
    finally:
        process.end()
