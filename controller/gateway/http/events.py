"""A response of server-sent events, begun with the first of them."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web

from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.http.sending import (
    MAX_WAITING_BYTES,
    let_wait,
    send_rest,
    taken,
)

SHORT_BYTES = 16_384  # with which asyncio lets a writer go on that had to wait
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would keep events until it has many
}


class EventStream:
    """Events as they come; a client that takes nothing for too long is ended."""

    def __init__(self, request: web.Request, room: ByteRoom) -> None:
        """`room` is the caller's."""
        self._request, self._room = request, room
        self._response = web.StreamResponse(headers=HEADERS)
        self._beginning = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._held = b""

    @property
    def has_begun(self) -> bool:
        """Was anything sent? From then on the status and the headers are settled."""
        return self._response.prepared

    def begin_with(self, headers: Mapping[str, str]) -> None:
        """Have these headers as well; they count until it has begun."""
        self._response.headers.update(headers)

    def hold(self, events: bytes) -> None:
        """Send these together with the next ones, or at the end."""
        self._held += events

    async def write(self, events: bytes) -> None:
        """Send `events`, one or several with the empty line after each.

        Raises ConnectionResetError for a client that is gone, or that takes nothing.
        """
        if not self._response.prepared:
            await self._begin()
        if self._held:
            events, self._held = self._held + events, b""
        self._written_at = self._loop.time()
        if self._is_short(events):
            await self._response.write(events)
        else:
            async with taken(self._request):
                await self._response.write(events)

    async def keep_alive(self, idle_s: float, event: Callable[[], bytes]) -> None:
        """Send an `event` whenever nothing was sent for `idle_s`, until this is cancelled.

        Clients give up on a connection that is silent, and what is between may close it.
        """
        while True:
            left_s = self._written_at + idle_s - self._loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            try:
                await self.write(event())
            except ConnectionError:  # the client has left, which ends its answer
                return

    async def end(self) -> web.StreamResponse:
        """The whole response."""
        await self._begin()
        held, self._held = self._held, b""
        await send_rest(self._request, self._response, held, self._room)
        return self._response

    def _is_short(self, events: bytes) -> bool:
        """Can `events` be written without a wait? A time limit takes as long as writing them."""
        transport = self._request.transport
        return (
            transport is not None and transport.get_write_buffer_size() + len(events) < SHORT_BYTES
        )

    async def _begin(self) -> None:
        async with self._beginning:  # several answers may come on one response
            if not self._response.prepared:
                if self._request.version < HttpVersion11:  # the end of it is the connection's
                    self._response.force_close()
                await self._response.prepare(self._request)
                let_wait(self._request, MAX_WAITING_BYTES)
