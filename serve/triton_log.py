"""Triton's log since its last start, read as it grows."""

import os
import re
from collections import Counter
from pathlib import Path

from trt_mtp.errors import TrtMtpError

CHUNK = 1 << 20  # bytes
CHUNKS_PER_READ = 16  # the rest comes with the next read
TAIL = 1 << 18  # bytes at the end of the log that an error message is made from
LONGEST_LINE = 4096  # bytes of a line in EVENTS
LOG_LINES = 12
# Triton's own lines; a signal's handler starts a new line, whatever models print
EVENTS = re.compile(
    rb"^(?P<signal>Signal \((?!2\)|15\))\d+\) received)"  # 2 and 15 end it in order
    rb"|successfully loaded '(?P<loaded>[^'\n]+)'"
    rb"|(?P<failed>failed to load '[^'\n]+' version)"
    rb"|^Failed to run python backend stub\. Errno = (?P<stub>\d+)"
    rb"|(?P<port>already in use)",
    re.MULTILINE,
)


class TritonLog:
    """Follows one log file; every byte is read once."""

    def __init__(self, file: Path) -> None:
        """Reads nothing before `begin`."""
        self.file = file
        self._reset(0)

    def _reset(self, start: int) -> None:
        self._start = self._position = start
        self._partial = b""
        self.signal = ""  # the line about a signal that Triton's handler wrote
        self.has_lost_port = False
        self.stub_error = ""  # why the process of a model could not be started
        self.loaded: Counter[str] = Counter()  # how often each model was
        self.num_loads = 0  # that ended, well or not

    def begin(self) -> None:
        """Forget what was read; a new start of the server writes from here on."""
        self.file.touch()
        self.file.chmod(0o600)  # engines may write prompts there
        self._reset(self.file.stat().st_size)

    def read(self) -> None:
        """Read what was appended, CHUNKS_PER_READ chunks at most; cheap if there is nothing."""
        try:
            size = self.file.stat().st_size
            if size == self._position:
                return
            if size < self._position:  # the file was truncated
                self._start = self._position = 0
            with self.file.open("rb") as file:
                file.seek(self._position)
                for _ in range(CHUNKS_PER_READ):
                    chunk = file.read(CHUNK)
                    self._position += len(chunk)
                    self._take(chunk)
                    if len(chunk) < CHUNK:
                        break
        except OSError:  # the file was removed
            return

    def _take(self, chunk: bytes) -> None:
        lines, newline, partial = (self._partial + chunk).rpartition(b"\n")
        self._partial = partial[:LONGEST_LINE]
        for event in EVENTS.finditer(lines + newline):
            text = event[event.lastgroup or 0].decode(errors="replace")
            match event.lastgroup:
                case "signal":
                    self.signal = text
                case "loaded":
                    self.loaded[text] += 1
                    self.num_loads += 1
                case "failed":
                    self.num_loads += 1
                case "stub":
                    self.stub_error = os.strerror(int(text))
                case _:
                    self.has_lost_port = True

    def require_start(self) -> None:
        """Raise TrtMtpError for what Triton would not end of, or only after seconds."""
        if self.has_lost_port:  # without its metrics port it would run on
            raise TrtMtpError(f"tritonserver lost a port:\n{log_excerpt(self.tail())}")
        if self.stub_error:  # it would wait for the process
            raise TrtMtpError(
                f"tritonserver can't start the process of a model ({self.stub_error}); it needs "
                f"bash in a folder of $PATH"
            )

    def tail(self) -> str:
        """The end of the log since the last start, TAIL bytes at most."""
        try:
            with self.file.open("rb") as file:
                file.seek(max(self._start, self.file.stat().st_size - TAIL))
                return file.read(TAIL).decode(errors="replace")
        except OSError:
            return ""

    def end_of_it(self) -> str:
        """The last useful lines, indented, after a heading that names the file."""
        return f"the end of {self.file}:\n{log_excerpt(self.tail())}"


def load_failure(log: str) -> str:
    """The last model that failed to load, and its reason, as the end of a sentence."""
    failures = re.findall(
        r"failed to load '(\S+)' version \d+: (.+?)(?:\\n|\"$)", log, re.MULTILINE
    )
    if not failures:
        return ""
    model, reason = failures[-1]
    return f", because {model} can't be loaded: {reason.rpartition('Exception: ')[2]}"


def log_excerpt(log: str) -> str:
    """The last lines of Triton's log, without tables, banners and messages about missing CUDA."""
    noise = re.compile(r"^\s*$|^[+|]|^I\d{4}|CudaDriverHelper|NVML|DCGM")
    lines = [line for line in log.splitlines() if not noise.search(line)]
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:]) or "  (empty)"
