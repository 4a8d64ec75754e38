"""How many bytes of messages may wait at once, for whoever has to wait until there is room."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

OVERFULL = 4  # times the limit, of what came without asking for room


class ByteRoom:
    """Room for `limit` bytes; one message alone may be longer. First come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.num_bytes = 0  # that are held
        self.num_waiting_bytes = 0  # that room is waited for
        self.turn = asyncio.Lock()  # of one of its messages, where these are read by turns

    @property
    def is_overfull(self) -> bool:
        """Whether what came without asking for room is far more than there is."""
        return self.num_bytes > OVERFULL * self.limit

    def take_now(self, size: int) -> bool:
        """Hold room for `size` bytes if there is some and nobody waits; `give_back` follows."""
        if self._waiting or (self.num_bytes and self.num_bytes + size > self.limit):
            return False
        self.num_bytes += size
        return True

    async def take(self, size: int) -> None:
        """The same, as soon as there is some."""
        if self.take_now(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self.num_waiting_bytes += size
        try:
            await turn  # until others gave enough back
        except asyncio.CancelledError:
            is_held = turn.done() and not turn.cancelled()
            self.give_back(size if is_held else 0)  # there may be room for who waits behind it
            raise
        finally:
            self.num_waiting_bytes -= size

    def give_back(self, size: int) -> None:
        """`size` bytes are no longer held."""
        self.num_bytes -= size
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.num_bytes += size
                turn.set_result(None)

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator["Hold"]:
        """Room for `size` bytes while something of unknown size comes."""
        await self.take(size)
        hold = Hold(self, size)
        try:
            yield hold
        finally:
            hold.resize(0)

    @contextmanager
    def hold_now(self, size: int) -> Iterator["Hold"]:
        """Count bytes that are there already; others wait if they are too many."""
        self.num_bytes += size
        hold = Hold(self, size)
        try:
            yield hold
        finally:
            hold.resize(0)

    def _fits(self, size: int) -> bool:
        return not self.num_bytes or self.num_bytes + size <= self.limit


class Hold:
    """The part of a room that one message has."""

    def __init__(self, room: ByteRoom, size: int) -> None:
        self._room, self._size = room, size

    def resize(self, size: int) -> None:
        """Hold `size` bytes instead, at once: they are there."""
        before, self._size = self._size, size
        self._room.give_back(before - size)

    def grow(self, size: int) -> None:
        """Hold `size` bytes more, at once."""
        self.resize(self._size + size)
