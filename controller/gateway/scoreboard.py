"""The scoreboard: numbers that the workers of one gateway share, in memory that has no file.

A counter has a key, a count for each worker, which only that one writes, and a time, which all
write. Counters are added under a lock and stay for as long as the gateway runs; numbers are read
and written without one, each as a whole because it is aligned.
"""

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from trt_mtp.controller.gateway.access.token_bucket import TokenBucket

log = logging.getLogger(__name__)

MAX_COUNTERS = 16_384  # those that nobody uses take no memory
KEY_BYTES = hashlib.sha256().digest_size
NUMBER_BYTES = 8


class Seat(NamedTuple):
    """Where worker `worker` of `num_workers` finds the scoreboard."""

    memory: str  # a path to open
    worker: int
    num_workers: int


class SharedCounter:
    """The numbers under one key, as one worker has them."""

    __slots__ = ("_counts", "_worker", "time")

    def __init__(self, numbers: memoryview, worker: int) -> None:
        self.time = numbers[:NUMBER_BYTES].cast("d")  # its one element
        self._counts = numbers[NUMBER_BYTES:].cast("q")
        self._worker = worker

    def add(self, change: int) -> None:
        """Add to this worker's count."""
        self._counts[self._worker] += change

    def is_over(self, limit: int) -> bool:
        """Whether the counts of all workers are more than `limit` together."""
        return self.total > limit

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
        self._counter_bytes = _counter_bytes(seat.num_workers if seat else 1)
        self._counters: dict[tuple[str, ...], SharedCounter] = {}  # that were asked for
        self._places: dict[bytes, int] = {}  # of all counters that were seen, by their key's hash
        if seat is None:
            self._memory = memoryview(mmap.mmap(-1, self._counter_bytes * MAX_COUNTERS))
        else:
            with open(seat.memory, "r+b") as file:
                self._memory = memoryview(mmap.mmap(file.fileno(), 0))

    def counter(self, *key: str) -> SharedCounter:
        """The counter of `key`, all zeros when nobody asked for it before."""
        counter = self._counters.get(key)
        if counter is None:
            numbers = self._numbers(hashlib.sha256(repr(key).encode()).digest())
            counter = self._counters[key] = SharedCounter(numbers, self._worker)
        return counter

    def bucket(self, tenant: str, what: str, rate_per_s: float, capacity: float) -> TokenBucket:
        """The bucket of what a tenant uses, which all workers share."""
        counter = self.counter("tenant", tenant, what, repr(rate_per_s))
        return TokenBucket(rate_per_s, capacity, counter.time)

    def places(self, tenant: str) -> SharedCounter:
        """The tenant's requests in flight."""
        return self.counter("tenant", tenant, "running")

    def clear(self, worker: int) -> None:
        """What a worker counted that is gone is gone with it."""
        self._read_places()
        for place in self._places.values():
            SharedCounter(self._at(place)[KEY_BYTES:], worker).clear()

    def _numbers(self, key: bytes) -> memoryview:
        with _locked(self._seat.memory) if self._seat else contextlib.nullcontext():
            self._read_places()
            place = self._places.get(key)
            if place is None and len(self._places) < MAX_COUNTERS:
                place = self._places[key] = len(self._places)
                self._at(place)[:KEY_BYTES] = key
        if place is None:
            log.warning("the scoreboard is full: of something new, each worker counts its own")
            return memoryview(bytearray(self._counter_bytes - KEY_BYTES))
        return self._at(place)[KEY_BYTES:]

    def _read_places(self) -> None:
        """Read keys that others added since; an empty one ends them."""
        while (place := len(self._places)) < MAX_COUNTERS:
            key = bytes(self._at(place)[:KEY_BYTES])
            if not any(key):
                return
            self._places[key] = place

    def _at(self, place: int) -> memoryview:
        start = place * self._counter_bytes
        return self._memory[start : start + self._counter_bytes]


@contextlib.contextmanager
def scoreboard_memory(num_workers: int) -> Iterator[str]:
    """A path that opens an empty scoreboard, for this process's children and no longer than it."""
    descriptor = os.memfd_create("trt-mtp-scoreboard")
    try:
        os.ftruncate(descriptor, _counter_bytes(num_workers) * MAX_COUNTERS)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Alone among all workers; the kernel lets go for one that dies."""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _counter_bytes(num_workers: int) -> int:
    return KEY_BYTES + NUMBER_BYTES * (1 + num_workers)
