"""An HTTP port: opened, kept up to date with its TLS files, drained and closed."""

import asyncio
import contextlib
import logging
import socket

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from trt_mtp.controller.gateway.addresses import host_and_port, stream_socket
from trt_mtp.controller.gateway.tls import WatchedTls
from trt_mtp.errors import InputError
from trt_mtp.serve.tls_files import TlsFiles, server_context

log = logging.getLogger(__name__)

RELOAD_S = 1.0  # between looks at the TLS files


class HttpServer:
    """Serves an application. Start and stop it inside one event loop."""

    def __init__(self, app: web.Application, grace_s: float, tls: TlsFiles | None = None) -> None:
        """Raises InputError when the TLS files can't be used."""
        self._tls = WatchedTls(tls) if tls else None
        self._site: web.SockSite | None = None
        self._reloader: asyncio.Task[None] | None = None
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_server_log(),
            handler_cancellation=True,  # a client that leaves ends its answer
            shutdown_timeout=grace_s,
        )
        self._socket: socket.socket | None = None

    async def start(self, host: str, port: int, option: str, *, is_shared: bool = False) -> int:
        """Listen on `port`, or a free one where it is 0; the port.

        `is_shared` lets other processes have it too. Raises InputError, naming the `option`.
        """
        await self._runner.setup()
        self._socket = stream_socket(host)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
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
        await self._runner.cleanup()

    async def _serve(self, listener: socket.socket) -> None:
        """Accept connections with the TLS files as they are now.

        Listening goes on meanwhile: the site that takes over has the same socket.
        """
        before = self._site
        context = server_context(self._tls.files) if self._tls else None
        self._site = web.SockSite(self._runner, listener.dup(), ssl_context=context)
        await self._site.start()
        if before is not None:
            await before.stop()

    async def _reload(self, tls: WatchedTls, listener: socket.socket) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            if tls.has_changed():
                try:
                    await self._serve(listener)
                except InputError as error:  # changed again in between
                    log.error("%s", error)


def _server_log() -> logging.Logger:
    """Where aiohttp says what went wrong."""
    found = logging.getLogger(f"{__name__}.aiohttp")
    found.addFilter(_without_contents)
    return found


def _without_contents(record: logging.LogRecord) -> bool:
    """Leave out what a malformed request has in it, which may be a token."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.exc_info = None
    return True
