"""The scoreboard: numbers that the workers of one gateway share, in memory that has no file.

A line has a key, a count for each worker, which only that one writes, and a time, which all write.
Lines are added under a lock and stay for as long as the gateway runs; numbers are read and written
without one, each as a whole because it is aligned.
"""

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

log = logging.getLogger(__name__)

MAX_LINES = 16_384  # what none is written on takes no memory
KEY_BYTES = hashlib.sha256().digest_size
NUMBER_BYTES = 8


class Seat(NamedTuple):
    """Where worker `worker` of `num_workers` finds the scoreboard."""

    memory: str  # a path to open
    worker: int
    num_workers: int


class Line:
    """The numbers under one key, as one worker has them."""

    __slots__ = ("_counts", "_worker", "time")

    def __init__(self, numbers: memoryview, worker: int) -> None:
        self.time = numbers[:NUMBER_BYTES].cast("d")  # its one element
        self._counts = numbers[NUMBER_BYTES:].cast("q")
        self._worker = worker

    def add(self, change: int) -> None:
        """Add to this worker's count."""
        self._counts[self._worker] += change

    def clear(self) -> None:
        """Set this worker's count to 0."""
        self._counts[self._worker] = 0

    @property
    def total(self) -> int:
        """The counts of all workers."""
        return sum(self._counts)

    @property
    def others(self) -> int:
        """The counts of all other workers."""
        return sum(self._counts) - self._counts[self._worker]


class Scoreboard:
    """One worker's view, or that of a process which shares with nobody."""

    def __init__(self, seat: Seat | None = None) -> None:
        self._seat = seat
        self._worker = seat.worker if seat else 0
        self._line_bytes = _line_bytes(seat.num_workers if seat else 1)
        self._lines: dict[tuple[str, ...], Line] = {}  # that were asked for
        self._places: dict[bytes, int] = {}  # of all lines that were seen, by their key's hash
        if seat is None:
            self._memory = memoryview(mmap.mmap(-1, self._line_bytes * MAX_LINES))
        else:
            with open(seat.memory, "r+b") as file:
                self._memory = memoryview(mmap.mmap(file.fileno(), 0))

    def line(self, *key: str) -> Line:
        """The line of `key`, all zeros when nobody asked for it before."""
        line = self._lines.get(key)
        if line is None:
            numbers = self._numbers(hashlib.sha256(repr(key).encode()).digest())
            line = self._lines[key] = Line(numbers, self._worker)
        return line

    def clear(self, worker: int) -> None:
        """What a worker counted that is gone is gone with it."""
        self._read_places()
        for place in self._places.values():
            Line(self._at(place)[KEY_BYTES:], worker).clear()

    def _numbers(self, key: bytes) -> memoryview:
        with _locked(self._seat.memory) if self._seat else contextlib.nullcontext():
            self._read_places()
            place = self._places.get(key)
            if place is None and len(self._places) < MAX_LINES:
                place = self._places[key] = len(self._places)
                self._at(place)[:KEY_BYTES] = key
        if place is None:
            log.warning("the scoreboard is full: of something new, each worker counts its own")
            return memoryview(bytearray(self._line_bytes - KEY_BYTES))
        return self._at(place)[KEY_BYTES:]

    def _read_places(self) -> None:
        """Read keys that others added since; an empty one ends them."""
        while (place := len(self._places)) < MAX_LINES:
            key = bytes(self._at(place)[:KEY_BYTES])
            if not any(key):
                return
            self._places[key] = place

    def _at(self, place: int) -> memoryview:
        start = place * self._line_bytes
        return self._memory[start : start + self._line_bytes]


@contextlib.contextmanager
def scoreboard_memory(num_workers: int) -> Iterator[str]:
    """A path that opens an empty scoreboard, for this process's children and no longer than it."""
    descriptor = os.memfd_create("trt-mtp-scoreboard")
    try:
        os.ftruncate(descriptor, _line_bytes(num_workers) * MAX_LINES)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Alone among all workers; the kernel lets go for one that dies."""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _line_bytes(num_workers: int) -> int:
    return KEY_BYTES + NUMBER_BYTES * (1 + num_workers)
