"""A process for work that strangers can make endless: it has limits, and can be ended.

Messages go in and answers come out. The kernel ends it beyond its processor time; beyond its memory
it says so or ends; who waits for an answer ends it after a time.
"""

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from json import dumps
from pathlib import Path
from typing import Any

from trt_mtp.errors import TrtMtpError
from trt_mtp.parent import die_with_parent

START_S = 60.0  # to import what it needs, on a machine with much else to do
MAX_ANSWER_BYTES = 1 << 27
KILL_S = 10.0
SIZE_BYTES = 4  # before each message
PIECE_BYTES = 1 << 20
# of the environment, which may hold keys and tokens: for Python, for the day and for its words
_NEEDED = re.compile(r"(?:PATH|LD_LIBRARY_PATH|PYTHON\w*|COVERAGE\w*|TZ|LANG|LANGUAGE|LC_\w+)$")
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"


class LostError(Exception):
    """No answer came: in time, if `is_late`, or because the process has ended."""

    def __init__(self, *, is_late: bool) -> None:
        super().__init__("it took too long" if is_late else "it has ended")
        self.is_late = is_late


class ConfinedProcess:
    """One process, started when it is first asked. One thread at a time."""

    def __init__(self, module: str, setup: bytes, memory_bytes: int, cpu_s: int) -> None:
        """`module` has a function `main` that calls `answer_messages`, which gets the rest.

        The process may take `memory_bytes` more than it has when it is set up, and for each message
        `cpu_s`, or a second more: the kernel counts whole ones.
        """
        self._module, self._setup = module, setup
        self._limits = str(memory_bytes), str(cpu_s)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], object] = _nothing

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """The answer to a message.

        Raises LostError, after which the next message goes to a new process, and TrtMtpError where
        none can be started.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        try:
            return self._exchange(message, timeout_s)
        except BaseException:  # an interrupt, too: the next answer would be another message's
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        self._process = None
        self._stop()

    def _start(self) -> None:
        boot = BOOT.format(module=self._module)
        # -P: a json.py in the working folder, a stranger's checkpoint say, is no module of ours
        command = [_python(), "-P", "-c", boot, dumps(sys.path), *self._limits]
        pipes: Mapping[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(
                command,
                **pipes,
                env={name: value for name, value in os.environ.items() if _NEEDED.match(name)},
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise TrtMtpError(f"a process for {self._module} can't be started: {error}") from None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._stop = weakref.finalize(self, _end, self._process)  # if nobody closes it
        try:
            self._exchange(self._setup, START_S)
        except LostError as error:
            self.close()
            raise TrtMtpError(f"a process for {self._module} does not start: {error}") from None

    def _exchange(self, message: bytes, timeout_s: float) -> bytes:
        until = time.monotonic() + timeout_s
        self._send(len(message).to_bytes(SIZE_BYTES, "little") + message, until)
        size = int.from_bytes(self._receive(SIZE_BYTES, until), "little")
        if size > MAX_ANSWER_BYTES:
            raise LostError(is_late=False)
        return self._receive(size, until)

    def _send(self, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            pipe = self._ready("stdin", select.POLLOUT, until)
            try:
                left = left[os.write(pipe, left[:PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise LostError(is_late=False) from None

    def _receive(self, size: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            pipe = self._ready("stdout", select.POLLIN, until)
            piece = os.read(pipe, min(size - len(data), PIECE_BYTES))
            if not piece:
                raise LostError(is_late=False)
            data += piece
        return bytes(data)

    def _ready(self, name: str, event: int, until: float) -> int:
        """The pipe's descriptor, once something can be done with it."""
        descriptor: int = getattr(self._process, name).fileno()
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(until - time.monotonic(), 0) * 1e3):
            raise LostError(is_late=True)
        return descriptor


def answer_messages(prepare: Callable[[bytes], Callable[[bytes], bytes]]) -> None:
    """The process: what `prepare` makes of the setup answers each message that comes.

    From then on it can open and write no file.
    """
    memory_bytes, cpu_s = map(int, sys.argv[2:])
    die_with_parent(os.getppid(), signal.SIGKILL)()  # also in the middle of a message
    source, sink = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)  # whatever is printed is no answer
    answer = prepare(_received(source) or b"")
    size = _own_bytes()
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(kind, (0, 0))
    most = size + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    _send_whole(sink, b"")
    while (message := _received(source)) is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        until_s = int(used.ru_utime + used.ru_stime) + cpu_s + 1
        resource.setrlimit(resource.RLIMIT_CPU, (until_s, resource.RLIM_INFINITY))
        _send_whole(sink, answer(message))


def _received(source: Any) -> bytes | None:
    """The next message; None at the end."""
    size = source.read(SIZE_BYTES)
    return source.read(int.from_bytes(size, "little")) if len(size) == SIZE_BYTES else None


def _send_whole(sink: int, answer: bytes) -> None:
    left = memoryview(len(answer).to_bytes(SIZE_BYTES, "little") + answer)
    while left:
        left = left[os.write(sink, left) :]


def _own_bytes() -> int:
    """Of this process's memory, with what is only reserved."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may finish something first
        process.wait(KILL_S)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


def _nothing() -> None:
    """There is no process to end."""


def _python() -> str:
    """This Python's program; Triton's, which is embedded, takes its own for it."""
    is_python = Path(sys.executable).name.startswith("python")
    return sys.executable if is_python else shutil.which("python3") or sys.executable
