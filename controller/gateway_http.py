"""The gateway over HTTP: health, metrics."""

import asyncio
import contextlib
import json
import logging
import socket
from typing import Any

from aiohttp import web

from trt_mtp.controller.dispatch import Dispatcher
from trt_mtp.controller.metrics import CONTENT_TYPE
from trt_mtp.controller.tls import WatchedTls
from trt_mtp.errors import InputError
from trt_mtp.serve.tls_files import TlsFiles, server_context

log = logging.getLogger(__name__)

RELOAD_S = 1.0  # between looks at the TLS files


class HttpServer:
    """Serves what Triton serves under the same paths. Start and stop it inside one event loop."""

    def __init__(self, dispatcher: Dispatcher, tls: TlsFiles | None = None) -> None:
        self._dispatcher = dispatcher
        self._tls = WatchedTls(tls) if tls else None
        self._site: web.SockSite | None = None
        self._reloader: asyncio.Task[None] | None = None
        app = web.Application(middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        self._socket = socket.socket()

    async def start(self, host: str, port: int) -> int:
        """Listen on `port`, or a free one where it is 0; the port. Raises InputError."""
        await self._runner.setup()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise InputError(
                f"can't listen on {host}:{port} for HTTP ({error.strerror}): "
                f"choose another with --http-port (0 takes a free port)"
            ) from None
        await self._serve()
        if self._tls is not None:
            self._reloader = asyncio.create_task(self._reload(self._tls))
        return int(self._socket.getsockname()[1])

    async def stop(self) -> None:
        """Close the port and what is connected."""
        if self._reloader is not None:
            self._reloader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reloader
        await self._runner.cleanup()
        self._socket.close()

    async def _serve(self) -> None:
        """Accept connections with the TLS files as they are now.

        Listening goes on meanwhile: the site that takes over has the same socket.
        """
        before = self._site
        context = server_context(self._tls.files) if self._tls else None
        self._site = web.SockSite(self._runner, self._socket.dup(), ssl_context=context)
        await self._site.start()
        if before is not None:
            await before.stop()

    async def _reload(self, tls: WatchedTls) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            if tls.has_changed():
                try:
                    await self._serve()
                except InputError as error:  # changed again in between
                    log.error("%s", error)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._dispatcher.render_metrics(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._dispatcher.is_ready() else 400)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every refusal is a JSON object with a sentence, as Triton's are."""
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        return error_response(
            404, f"nothing is served at {request.path}; the paths are those of docs/gateway.md"
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = " or ".join(sorted(error.allowed_methods))
        return error_response(405, f"{request.path} takes {allowed}, not {request.method}")
    return response


def error_response(status: int, sentence: str) -> web.Response:
    """A refusal in Triton's form."""
    return web.Response(
        status=status, text=json.dumps({"error": sentence}), content_type="application/json"
    )
