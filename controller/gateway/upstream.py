"""A stream to Triton that serves one request at a time, and is kept open between requests.

One at a time, because Triton cancels all requests of a stream together; kept, because opening one
costs as much as a request.
"""

import asyncio
import contextlib
import time
from typing import Any

import grpc

Metadata = tuple[tuple[str, str], ...]

END_S = 2.0  # for Triton to end a stream after us


class UpstreamLost(Exception):
    """A stream ended before an answer did.

    `is_hung` when it was given up, `is_unavailable` when the server can't be reached.
    """

    def __init__(self, reason: str, *, is_hung: bool = False, is_unavailable: bool = False) -> None:
        super().__init__(reason)
        self.is_hung = is_hung
        self.is_unavailable = is_unavailable


class Upstream:
    """A ModelStreamInfer call, bytes in and out."""

    __slots__ = ("_call", "_is_hung", "_writing", "generation", "is_shared", "waiting_since_s")

    def __init__(self, call: Any, *, is_shared: bool, generation: int = 0) -> None:
        """`is_shared` says that other requests may use it later, those of its `generation`."""
        self._call = call
        self.generation = generation
        self._is_hung = False
        self._writing: asyncio.Task[None] | None = None
        self.is_shared = is_shared
        self.waiting_since_s = 0.0  # monotonic time since which a message is awaited, or 0

    @property
    def is_open(self) -> bool:
        """False once the call is known to have ended."""
        return not self._call.done()

    def begin(self, raw: bytes) -> None:
        """Send a request; a failure shows when its answer is read.

        Nobody waits for the sending: gRPC doesn't end it with the call while the server takes
        nothing from the connection.
        """
        self._writing = asyncio.create_task(self._write(raw))

    async def _write(self, raw: bytes) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(raw)

    async def read(self) -> bytes:
        """The next message; raises UpstreamLost where there is none."""
        self.waiting_since_s = time.monotonic()
        try:
            raw = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise UpstreamLost(
                f"{error.code().name}: {error.details()}",
                is_unavailable=error.code() == grpc.StatusCode.UNAVAILABLE,
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_hung and not (task and task.cancelling()):
                raise UpstreamLost("it sent nothing for too long", is_hung=True) from None
            raise
        self.waiting_since_s = 0.0
        if raw is grpc.aio.EOF:
            raise UpstreamLost("Triton ended the stream")
        return bytes(raw)

    def give_up(self) -> None:
        """End it because nothing comes; whoever reads it learns of that."""
        self._is_hung = True
        self._call.cancel()

    async def end(self) -> None:
        """End it while nothing is in flight on it.

        Not by cancelling: Triton 2.51 then keeps what it knows of a request that ended just before
        (a race; its pull request 8078 is about one like it), and with it the model, for ever.
        """
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(END_S):
                await self._call.done_writing()
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        self._call.cancel()

    def close(self) -> None:
        """End it; what is in flight on it is cancelled."""
        self._call.cancel()
        if self._writing is not None:
            self._writing.cancel()
