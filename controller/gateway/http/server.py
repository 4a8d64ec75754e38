"""An HTTP port: opened, kept up to date with its TLS files, drained and closed."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.access.tls import WatchedTls
from trt_mtp.controller.gateway.http.connections import Connections
from trt_mtp.controller.gateway.http.errors import refused
from trt_mtp.controller.gateway.http.malformed import MAX_HEADER_BYTES, Connection
from trt_mtp.controller.gateway.http.pieces import Turns
from trt_mtp.controller.gateway.servers.addresses import stream_socket
from trt_mtp.errors import InputError
from trt_mtp.serve.hosts import host_and_port
from trt_mtp.serve.tls_files import server_context

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

RELOAD_S = 1.0  # between looks at the TLS files
BACKLOG = 1_024  # connections that wait to be accepted
# asyncio accepts so many before it looks at the first: each has a file open, even one too many
ACCEPTED_AT_ONCE = 16
SEND_BYTES = 256 * 1024  # that the kernel keeps for a client; by itself it takes megabytes for each


class HttpServer:
    """Serves an application. Start and stop it inside one event loop."""

    def __init__(
        self, app: web.Application, grace_s: float, access: AccessConfig, look: Callable[[], None]
    ) -> None:
        """`look` is what the application wants done now and then.

        Raises InputError when the TLS files can't be used.
        """
        self._look = look
        self._tls = WatchedTls(access.tls) if access.tls else None
        self._connections = Connections(access.connections)
        app.middlewares.insert(0, self._connections.middleware)
        self._listening: asyncio.Server | None = None
        self._reloader: asyncio.Task[None] | None = None
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,  # a client that leaves ends its answer
            shutdown_timeout=grace_s,
        )
        options: dict[str, Any] = {
            "access_log": None,
            "logger": _server_log(),
            "keepalive_timeout": access.connections.idle_s,
            "auto_decompress": False,  # a kilobyte may be a gigabyte, before a token is asked for
            "max_field_size": MAX_HEADER_BYTES,
            "max_line_size": MAX_HEADER_BYTES,
            "turns": Turns(),
        }
        self._connect = partial(Connection, **options)
        self._socket: socket.socket | None = None

    async def start(self, host: str, port: int, option: str, *, is_shared: bool = False) -> int:
        """Listen on `port`, or a free one where it is 0; the port.

        `is_shared` lets other processes have it too. Raises InputError, naming the `option`.
        """
        await self._runner.setup()
        assert self._runner.server is not None
        self._runner.server.request_handler = _refusing(self._runner.server.request_handler)
        self._socket = stream_socket(host)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # of connections
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise InputError(
                f"can't listen on {host_and_port(host, port)} for HTTP ({error.strerror}): "
                f"choose another with {option} (0 takes a free port)"
            ) from None
        await self._serve(self._socket)
        if self._tls is not None:
            self._reloader = asyncio.create_task(self._reload(self._tls, self._socket))
        return int(self._socket.getsockname()[1])

    async def stop(self) -> None:
        """Take no more connections, finish answers within the grace period, and close."""
        if self._reloader is not None:
            self._reloader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reloader
        if self._socket is not None:
            self._socket.close()
        if self._listening is not None:
            await stop_listening(self._listening)
        self._connections.end_handshakes()
        await self._runner.shutdown()
        await self._runner.cleanup()

    def look(self) -> None:
        """Close connections that are idle for too long; call it now and then."""
        self._connections.look()
        self._look()

    async def _serve(self, listener: socket.socket) -> None:
        """Accept connections with the TLS files as they are now.

        Listening continues meanwhile: the server that takes over has the same socket.
        """
        before = self._listening
        context = server_context(self._tls.contents) if self._tls else None
        server, loop = self._runner.server, asyncio.get_running_loop()
        assert server is not None
        self._listening = await loop.create_server(
            self._connections.accept(server, partial(self._connect, server, loop=loop), context),
            sock=listener.dup(),
            backlog=ACCEPTED_AT_ONCE,
        )
        listener.listen(BACKLOG)
        if before is not None:
            await stop_listening(before)

    async def _reload(self, tls: WatchedTls, listener: socket.socket) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            if tls.has_changed():
                try:
                    await self._serve(listener)
                except InputError as error:  # changed again in between
                    log.error("%s", error)


async def stop_listening(server: asyncio.Server) -> None:
    """Accept no more connections; those that wait are left to who has the same socket.

    asyncio gives a connection its transport one turn of the loop after it was accepted, and drops
    it if the server was closed in between.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    await asyncio.sleep(0)
    server.close()


def _refusing(handler: Handler) -> Handler:
    """`handler`, with an answer to headers that aiohttp can't put into its own refusal."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handler(request)
        except UnicodeEncodeError:
            return refused(400, "a header of the request is not UTF-8 text")
        except web.HTTPExpectationFailed:
            return refused(417, "the header Expect takes 100-continue, or is left out")

    return handle


def _server_log() -> logging.Logger:
    """Where aiohttp says what went wrong."""
    found = logging.getLogger(f"{__name__}.aiohttp")
    found.addFilter(_is_own)
    return found


def _is_own(record: logging.LogRecord) -> bool:
    """Leave out what clients cause by leaving, and by malformed requests, which may have a token.

    Anybody could fill the disk with it.
    """
    return record.exc_info is None or not isinstance(
        record.exc_info[1], HttpProcessingError | ConnectionError
    )
