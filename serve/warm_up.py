"""The first answer of a variant's engine, before any client's: compiled once for all variants."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.engine.base import Chunk, Engine, Request, SamplingParams

COMPILE_S = 60.0  # for another variant to compile; then both do
LOOK_S = 0.1
WARM_UP_S = 600.0  # for a first answer, with compiling; `serve` may kill this process earlier


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, so that one variant compiles and the others load the result.

    Go on without it after COMPILE_S, as any user who may read the folder can hold it, and where
    the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + COMPILE_S
    try:
        while not _is_taken(descriptor) and time.monotonic() < until:
            time.sleep(LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def warm_up(engine: Engine) -> None:
    """Answer a tiny request, so that everything is compiled and mapped before clients come."""
    is_done = threading.Event()

    def on_chunk(chunk: Chunk) -> None:
        if chunk.finish_reason is not None:
            is_done.set()

    engine.submit(Request((0, 0), SamplingParams(max_tokens=8, ignore_eos=True)), on_chunk)
    if not is_done.wait(WARM_UP_S):
        raise TrtMtpError(f"the engine gave no answer to its first request in {WARM_UP_S:.0f} s")
