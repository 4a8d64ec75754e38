"""What takes a while to read or to write: in a thread, one after the other, by turns of callers.

Reading JSON can't be interrupted. Threads that do it take turns with the event loop, which would
come after all of them each time.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.serve.json_weight import MAX_SHORT

T = TypeVar("T")


class LongBodies:
    """Make it inside the event loop that uses it."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def read(self, body: bytes, room: ByteRoom, read: Callable[[bytes], T]) -> T:
        """`read` of a body: a short one at once, a long one when its caller's others are read."""
        return await self.do(len(body), room, partial(read, body))

    async def do(self, size: int, room: ByteRoom, work: Callable[[], T]) -> T:
        """The same with any work on so many bytes."""
        if size <= MAX_SHORT:
            return work()
        async with room.turn, self._one:
            return await asyncio.to_thread(work)
