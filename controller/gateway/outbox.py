"""What a client's stream has not taken yet: messages in order, and the one task that writes them.

An answer is read from its variant into here, so that a client that takes nothing holds no place
there. When MAX_BYTES wait, whoever adds more waits, and with it the stream that it reads from.
"""

import asyncio
import math
import time
from collections import deque
from typing import Any

import grpc

from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.failure import RpcError

MAX_BYTES = 1024 * 1024
GONE_S = 1.0  # for gRPC to cancel the call of a client that is gone


class Outbox:
    """The messages for one ModelStreamInfer call. `run` is its task."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._room = ByteRoom(MAX_BYTES)
        self._messages: deque[bytes] = deque()
        self._is_over = False
        self._wakes: asyncio.Future[None] | None = None  # the task, where it waits for a message
        self._emptied: asyncio.Future[None] | None = None  # whoever waits until all is written
        self.writing_since = math.inf  # monotonic time since which the client takes a message
        self.full_since = math.inf  # the same, since which an answer waits for it to take half

    async def put(self, raw: bytes) -> None:
        """Add a message, as soon as there is room."""
        if not self._room.take_now(len(raw)):
            self.full_since = min(self.full_since, time.monotonic())
            await self._room.take(len(raw))
        self._messages.append(raw)
        self._wake()

    async def flush(self) -> None:
        """Until everything is written, or the call ends."""
        if self._messages:
            if self._emptied is None:
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    def end(self) -> None:
        """Let `run` return when everything is written."""
        self._is_over = True
        self._wake()

    async def run(self) -> None:
        """Write messages as the client takes them; ends after `end`.

        Raises RpcError if the client is gone, so that nobody waits for room that won't come.
        """
        while True:
            while self._messages:
                await self._write(self._messages[0])
                self._room.give_back(len(self._messages.popleft()))
                if self.full_since != math.inf and self._room.num_bytes <= MAX_BYTES // 2:
                    self.full_since = math.inf
            if self._emptied is not None:
                self._emptied.set_result(None)
                self._emptied = None
            if self._is_over:
                return
            self._wakes = asyncio.get_running_loop().create_future()
            await self._wakes  # for as long as the client's stream is open

    async def _write(self, raw: bytes) -> None:
        self.writing_since = time.monotonic()
        try:
            await self._context.write(raw)
        except grpc.aio.InternalError:  # as a rule gRPC is about to cancel us
            await asyncio.sleep(GONE_S)
            raise RpcError(grpc.StatusCode.CANCELLED, "the client is gone") from None
        finally:
            self.writing_since = math.inf

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)
