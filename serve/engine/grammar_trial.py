"""Grammars compiled on trial in a process of their own, which can be ended, before an engine does.

llguidance's limits don't hold all of its compiler's work: a `multipleOf` of nine digits, or a dozen
patterns in an `allOf`, would hold a thread for hours and take gigabytes.
"""

import contextlib
import hashlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trt_mtp.errors import TrtMtpError

CPU_S = 1  # for one grammar; the kernel counts whole seconds, so it may be one more
MEMORY_BYTES = 128 * 1024 * 1024  # for one grammar, above what the process has without one
START_S = 60.0  # to import llguidance and read a tokenizer, on a machine with much else to do
ANSWER_S = 30.0  # for CPU_S on such a machine
MAX_KNOWN = 1_024  # grammars whose trial is remembered
READY, DONE = b"r", b"d"
SIZE_BYTES = 4
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trt_mtp.serve.engine.grammar_trial import main; main()"
)


class GrammarTrial:
    """A process that compiles grammars for one tokenizer, started when it is needed."""

    def __init__(
        self, tokenizer: str, options: Mapping[str, Any], limits: Mapping[str, Any]
    ) -> None:
        """`tokenizer` is its JSON; `options` are LLTokenizer's, `limits` LLParserLimits'."""
        setup = {"tokenizer": tokenizer, "options": options, "limits": limits}
        self._setup = json.dumps(setup).encode()
        self._known: OrderedDict[bytes, bool] = OrderedDict()  # by digest: is it within the limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def is_small(self, grammar: str) -> bool:
        """Whether compiling `grammar` is within the limits of time and memory.

        True for one that llguidance refuses in time, too. Raises TrtMtpError where no process can
        be started.
        """
        content = grammar.encode()
        digest = hashlib.sha256(content).digest()
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
            is_small, is_sure = self._tried(content)
            if is_sure:
                self._known[digest] = is_small
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
            return is_small

    def close(self) -> None:
        """End the process; a later trial starts another."""
        with self._lock:
            self._end()

    def _tried(self, content: bytes) -> tuple[bool, bool]:
        """Whether it is small, and whether it would be found so again."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        if self._exchange(content, ANSWER_S) == DONE:
            return True, True
        is_slow = self._end() is None  # the machine, not the grammar
        return False, not is_slow

    def _start(self) -> None:
        command = [_python(), "-c", BOOT, json.dumps(sys.path)]
        pipes: Mapping[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(
                command, **pipes, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise TrtMtpError(f"guided_decoding can't be tried: {error}") from None
        self._stop = weakref.finalize(self, _stop, self._process)  # if nobody closes it
        if self._exchange(self._setup, START_S) != READY:
            self._end()
            raise TrtMtpError("guided_decoding can't be tried: the process for it does not start")

    def _exchange(self, message: bytes, timeout_s: float) -> bytes:
        """The process's answer of one byte; empty where it ended, or gives none in time."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(message).to_bytes(SIZE_BYTES, "little") + message)
            process.stdin.flush()
        except OSError:
            return b""
        has_answer, _, _ = select.select([process.stdout], [], [], timeout_s)
        return os.read(process.stdout.fileno(), 1) if has_answer else b""

    def _end(self) -> int | None:
        """End the process; how it had ended before, None where it had not."""
        process, self._process = self._process, None
        if process is None:
            return None
        ended = process.poll()
        self._stop()
        return ended


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # what was not sent yet
            pipe.close()


def _python() -> str:
    """This Python's program; Triton's, which is embedded, takes its own for it."""
    is_python = Path(sys.executable).name.startswith("python")
    return sys.executable if is_python else shutil.which("python3") or sys.executable


def main() -> None:
    """The process: grammars come in, a byte goes out for each that was compiled or refused."""
    setup = json.loads(_received(sys.stdin.buffer) or b"{}")
    compile_one = _compiler(**setup)
    compile_one("start: /a/")  # so that what is only made once is there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _size_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.write(sys.stdout.fileno(), READY)
    while content := _received(sys.stdin.buffer):
        used = resource.getrusage(resource.RUSAGE_SELF)
        until_s = int(used.ru_utime + used.ru_stime) + CPU_S + 1
        resource.setrlimit(resource.RLIMIT_CPU, (until_s, resource.RLIM_INFINITY))
        compile_one(content.decode())
        os.write(sys.stdout.fileno(), DONE)


def _compiler(
    tokenizer: str, options: Mapping[str, Any], limits: Mapping[str, Any]
) -> Callable[[str], None]:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    read = LLTokenizer(tokenizer, **options)

    def compile_one(grammar: str) -> None:
        """Compile it and compute its first mask, as an engine does."""
        try:
            matcher = LLMatcher(read, grammar, log_level=0, limits=LLParserLimits(**limits))
            if not matcher.is_error():
                matcher.compute_bitmask()
        except ValueError:  # the engine will say it
            return

    return compile_one


def _received(source: BinaryIO) -> bytes:
    """The next message; empty at the end."""
    size = int.from_bytes(source.read(SIZE_BYTES), "little")
    return source.read(size)


def _size_bytes() -> int:
    """Of this process's memory, with what is only reserved."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
