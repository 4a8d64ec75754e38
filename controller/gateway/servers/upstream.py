"""A stream to Triton that serves one request at a time, and is kept open between requests.

One at a time, because Triton cancels all requests of a stream together; kept, because opening one
costs as much as a request. A stream with something in flight is never cancelled: Triton 2.51 aborts
at times when one is (gateway/winding_down.py has what is done instead). That is why the stream has
a reader of its own: grpc.aio cancels a call when a read of it is cancelled, and whoever waits for
an answer may stop at any moment.
"""

import asyncio
import contextlib
import time
from collections import deque
from copy import copy
from typing import Any

import grpc

Metadata = tuple[tuple[str, str], ...]

END_S = 3.0  # for Triton to end a stream after us
# of messages that are read before somebody wants them; then flow control holds Triton
MAX_AHEAD, MAX_AHEAD_BYTES = 4, 1 << 20


class UpstreamLost(Exception):
    """A stream has ended, with the status `code` and `details`.

    Or it was given up, `is_hung` where its server answers others, or it took no request any more,
    `is_unsent`.
    """

    def __init__(
        self,
        reason: str,
        code: grpc.StatusCode = grpc.StatusCode.CANCELLED,
        details: str = "",
        *,
        is_hung: bool = False,
        is_unsent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.details = details
        self.is_hung = is_hung
        self.is_unsent = is_unsent

    @property
    def is_unavailable(self) -> bool:
        """True where the server can't be reached."""
        return bool(self.code == grpc.StatusCode.UNAVAILABLE)

    @property
    def is_orderly(self) -> bool:
        """True where Triton ended the stream."""
        return bool(self.code == grpc.StatusCode.OK)


class Upstream:
    """A ModelStreamInfer call, bytes in and out; for one request after the other."""

    __slots__ = (
        "_ahead",
        "_arrival",
        "_given_up",
        "_lost",
        "_reading",
        "_room",
        "_writing",
        "call",
        "generation",
        "is_shared",
        "waiting_since",
    )

    def __init__(self, call: Any, *, is_shared: bool, generation: int = 0) -> None:
        """`is_shared` says that other requests may use it later, those of its `generation`."""
        self.call = call
        self._ahead: deque[bytes] = deque()
        self._arrival: asyncio.Future[None] | None = None  # of what somebody waits for
        self._room: asyncio.Future[None] | None = None  # in `_ahead`, where the reader waits for it
        self._lost: UpstreamLost | None = None
        self._given_up: UpstreamLost | None = None
        self._writing: asyncio.Task[None] | None = None
        self._reading = asyncio.create_task(self._read_ahead())
        self.generation = generation
        self.is_shared = is_shared
        self.waiting_since = 0.0  # monotonic time since which a message is awaited, or 0

    @property
    def is_open(self) -> bool:
        """False once the call is known to have ended."""
        return self._lost is None and not self.call.done()

    def begin(self, raw: bytes, *, is_last: bool = False) -> None:
        """Send a request, the last one if so; a failure shows when its answer is read.

        Nobody waits for the sending: gRPC doesn't end it with the call while the server takes
        nothing from the connection.
        """
        self._given_up = None
        self._writing = asyncio.create_task(self._write(raw, is_last, self._writing))

    async def _write(self, raw: bytes, is_last: bool, before: "asyncio.Task[None] | None") -> None:
        # the answer to a request can be here before gRPC says that the request was sent, and a
        # call on which two are being sent ends in "Internal error from Core", a read of it never
        if before is not None and not before.done():
            await asyncio.wait([before])
        try:
            await self.call.write(raw)
            if is_last:
                await self.call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # grpc.aio takes the call for ended now, and a read that waits is not always told
            self._lost = self._lost or _unsent(error)
            self._wake()

    async def read(self) -> bytes:
        """The next message; raises UpstreamLost where there is none."""
        if not self._ahead:
            self.waiting_since = time.monotonic()
            try:
                await self._wait_for_arrival()
            finally:
                self.waiting_since = 0.0
        raw = self._ahead.popleft()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return raw

    async def _wait_for_arrival(self) -> None:
        """Ended by the next message, by the call's end, or by `give_up`."""
        while not self._ahead:
            if self._given_up is not None:
                raise copy(self._given_up)  # itself would hold the frames that hold this
            if self._lost is not None:
                raise copy(self._lost)
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None

    async def _read_ahead(self) -> None:
        """Read messages as they come, until the call ends; idle streams wait here for ever."""
        try:
            while (raw := await self.call.read()) is not grpc.aio.EOF:
                self._ahead.append(bytes(raw))
                self._wake()
                while len(self._ahead) >= MAX_AHEAD or sum(map(len, self._ahead)) > MAX_AHEAD_BYTES:
                    await self._wait_for_room()
            self._lost = self._lost or UpstreamLost("Triton ended the stream", grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
            self._lost = self._lost or UpstreamLost(f"{code.name}: {details}", code, details)
        finally:
            self._lost = self._lost or UpstreamLost("its connection was closed")
            self._wake()

    async def _wait_for_room(self) -> None:
        """Until a message was taken, or the call is cancelled."""
        self._room = asyncio.get_running_loop().create_future()
        await self._room

    def _wake(self) -> None:
        waiting = self._arrival
        # a loop that was closed before us has nobody who waits
        if waiting is not None and not waiting.done() and not waiting.get_loop().is_closed():
            waiting.set_result(None)

    def give_up(self, why: UpstreamLost) -> None:
        """Tell whoever waits for a message that none comes; the stream itself goes on."""
        self._given_up = why
        self._wake()

    def go_on(self) -> None:
        """Take `give_up` back: somebody waits for the rest after all."""
        self._given_up = None

    async def end(self) -> None:
        """End it while nothing is in flight on it.

        Not by cancelling: Triton 2.51 then keeps what it knows of a request that ended just before
        (a race; its pull request 8078 is about one like it), and with it the model, for ever.
        """
        closing = asyncio.create_task(self._half_close())
        try:
            await asyncio.wait([closing, self._reading], timeout=END_S)
        finally:
            self.close()

    async def _half_close(self) -> None:
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.done_writing()

    def close(self) -> None:
        """Let go of a call that has ended; one that hasn't is cancelled, see `end`."""
        self.call.cancel()
        self._reading.cancel()
        if self._writing is not None:
            self._writing.cancel()


def _unsent(error: Exception) -> UpstreamLost:
    """A request did not get through."""
    if not isinstance(error, grpc.aio.AioRpcError):  # the call had ended before
        return UpstreamLost("the stream took no request any more", is_unsent=True)
    code, details = error.code(), error.details() or ""
    return UpstreamLost(f"{code.name}: {details}", code, details, is_unsent=True)
