"""Connections to an HTTP port: how many, and how long without a request."""

import asyncio
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from trt_mtp.controller.gateway.access.config import ConnectionLimits
from trt_mtp.controller.gateway.http.handshake import Handshake

LOOK_S = 0.5  # between looks, which take a time that grows with the number of connections

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Connections:
    """Closes connections that are too many, silent, or slow with their requests' headers.

    aiohttp itself closes only those that had a request, and none while they send one.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._server: web.Server | None = None
        self._busy: dict[object, int] = {}  # requests by connection
        self._idle_since: dict[object, float] = {}  # monotonic; of those without a request
        self._served = set[object]()  # that had a request before
        self._handshakes = set[Handshake]()
        self._looked_at = -math.inf  # monotonic

    def accept(
        self,
        server: web.Server,
        connect: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> Callable[[], asyncio.BaseProtocol]:
        """What makes the protocol of each new connection to `server`: `connect`, while it may."""
        self._server = server

        def protocol() -> asyncio.BaseProtocol:
            if len(server.connections) + len(self._handshakes) >= self._limits.max_connections:
                return _Closed()
            if tls is None:
                return connect()
            return Handshake(self._handshakes, connect, tls, self._limits.handshake_s)

        return protocol

    def end_handshakes(self) -> None:
        """Close connections whose handshake isn't over."""
        for handshake in list(self._handshakes):
            handshake.end()

    @property
    def middleware(self) -> Any:
        """Notes which connections have a request; it comes first."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = request.protocol
            self._busy[connection] = self._busy.get(connection, 0) + 1
            self._served.add(connection)
            try:
                return await handler(request)
            finally:
                self._busy[connection] -= 1
                if not self._busy[connection]:
                    del self._busy[connection]

        return note

    def look(self) -> None:
        """Close what has been without a request for too long; call it now and then."""
        now, idle_since = time.monotonic(), self._idle_since
        if self._server is None or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        idle = [each for each in self._server.connections if each not in self._busy]
        self._idle_since = {each: idle_since.get(each, now) for each in idle}
        self._served &= set(self._server.connections)
        for connection in idle:
            is_new = connection not in self._served
            limit_s = self._limits.handshake_s if is_new else self._limits.idle_s
            if now - self._idle_since[connection] > limit_s and connection.transport is not None:
                connection.transport.abort()


class _Closed(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
