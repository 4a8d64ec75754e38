"""The gateway over HTTP: health, metrics."""

import json
from typing import Any

from aiohttp import web

from trt_mtp.controller.dispatch import Dispatcher
from trt_mtp.controller.metrics import CONTENT_TYPE
from trt_mtp.errors import InputError


class HttpServer:
    """Serves what Triton serves under the same paths. Start and stop it inside one event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on `port`, or a free one where it is 0; the port. Raises InputError."""
        app = web.Application(middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, reuse_port=False).start()
        except OSError as error:
            raise InputError(
                f"can't listen on {host}:{port} for HTTP ({error.strerror}): "
                f"choose another with --http-port (0 takes a free port)"
            ) from None
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and what is connected."""
        if self._runner is not None:
            await self._runner.cleanup()

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
