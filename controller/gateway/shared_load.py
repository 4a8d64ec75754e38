"""Requests in flight on each variant, as the workers of one gateway tell each other.

Each worker writes its own file and reads the others', all of them mapped into memory. A file is a
table of keys and counts; a key keeps its place for as long as the gateway runs.
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

MAX_KEYS = 128
KEY_BYTES = 120
ROW = struct.Struct(f"<{KEY_BYTES}sq")  # the count is aligned, so that it is read whole
COUNT = struct.Struct("<q")


class LoadPlace(NamedTuple):
    """Where worker `worker` of `num_workers` finds the tables."""

    folder: Path
    worker: int
    num_workers: int


class SharedLoad:
    """One worker's view. Of keys beyond MAX_KEYS the others learn nothing."""

    def __init__(self, place: LoadPlace) -> None:
        """`make_files` was called before."""
        files = [load_file(place.folder, number) for number in range(place.num_workers)]
        tables = [_Table(file) for file in files]
        self._own = tables.pop(place.worker)
        self._others = tables

    def publish(self, key: str, count: int) -> None:
        """Tell the others that `count` requests are in flight here."""
        self._own.set(_encoded(key), count)

    def others(self, key: str) -> int:
        """Requests in flight at the others."""
        encoded = _encoded(key)
        return sum([table.get(encoded) for table in self._others])


class _Table:
    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), MAX_KEYS * ROW.size)
        self._places: dict[bytes, int] = {}  # where counts lie
        self._num_read = 0

    def get(self, key: bytes) -> int:
        place = self._place(key)
        return 0 if place is None else int(COUNT.unpack_from(self._map, place)[0])

    def set(self, key: bytes, count: int) -> None:
        place = self._place(key)
        if place is None:
            if self._num_read == MAX_KEYS:
                return
            ROW.pack_into(self._map, self._num_read * ROW.size, key, count)
        else:
            COUNT.pack_into(self._map, place, count)

    def _place(self, key: bytes) -> int | None:
        if key not in self._places:
            self._read_rest()
        return self._places.get(key)

    def _read_rest(self) -> None:
        """Read keys that were added since; an empty one ends the table."""
        while self._num_read < MAX_KEYS:
            start = self._num_read * ROW.size
            key = self._map[start : start + KEY_BYTES].rstrip(b"\0")
            if not key:
                return
            self._places[key] = start + KEY_BYTES
            self._num_read += 1


def make_files(folder: Path, num_workers: int) -> None:
    """Make every worker's empty table."""
    for index in range(num_workers):
        load_file(folder, index).write_bytes(bytes(MAX_KEYS * ROW.size))


def clear(folder: Path, index: int) -> None:
    """A worker is gone, and what was in flight there with it."""
    with load_file(folder, index).open("r+b") as file:
        for row in range(MAX_KEYS):
            file.seek(row * ROW.size + KEY_BYTES)
            file.write(COUNT.pack(0))


def load_file(folder: Path, index: int) -> Path:
    """The table of worker `index`."""
    return folder / f"load-{index}"


def _encoded(key: str) -> bytes:
    return key.encode()[-KEY_BYTES:]
