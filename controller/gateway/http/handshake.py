"""TLS handshakes of an HTTP port, which count as connections while they last.

asyncio tells nobody of a connection whose handshake isn't over, and anybody may begin one: those of
strangers who never end theirs took all files that the process may open.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable


class Handshake(asyncio.Protocol):
    """A connection until its handshake is over; `connect` makes the protocol that it has then."""

    def __init__(
        self,
        under_way: "set[Handshake]",
        connect: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        limit_s: float,
    ) -> None:
        """It is in `under_way` while it lasts, `limit_s` at most."""
        self._under_way, self._connect = under_way, connect
        self._context, self._limit_s = context, limit_s
        self._early = bytearray()  # that came with the end of the handshake
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None
        under_way.add(self)  # from the moment in which it has a file open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._task = asyncio.get_running_loop().create_task(self._run(transport))

    def data_received(self, data: bytes) -> None:
        """Keep it for who is about to have the connection: some KB, one reading of the socket."""
        self._early += data

    def connection_lost(self, error: Exception | None) -> None:
        """The client left in the moment in which the handshake was over."""
        self._is_lost = True

    def end(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, transport: asyncio.Transport) -> None:
        try:
            secured = await self._secured(transport)
        finally:
            self._under_way.discard(self)
        if secured is None or self._is_lost:
            transport.abort()
            return
        protocol = self._connect()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(bytes(self._early))

    async def _secured(self, transport: asyncio.Transport) -> asyncio.Transport | None:
        """The transport over TLS; None if its client ends it, or makes no handshake."""
        with contextlib.suppress(OSError, TimeoutError):
            return await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._limit_s,
            )
        return None
