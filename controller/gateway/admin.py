"""The gateway's admin port: what it does, for whoever runs it; never on a public address."""

from typing import TYPE_CHECKING

from aiohttp import web

from trt_mtp.controller.gateway.http_errors import errors_as_json
from trt_mtp.controller.gateway.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.gateway import Gateway


def admin_app(gateway: "Gateway") -> web.Application:
    """GET /statistics and /metrics, POST /drain."""

    async def statistics(_: web.Request) -> web.Response:
        return web.json_response(gateway.describe() | gateway.statistics())

    async def metrics(_: web.Request) -> web.Response:
        body = gateway.dispatcher.render_metrics()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def drain(_: web.Request) -> web.Response:
        gateway.on_drain()
        return web.json_response({"schema_version": 1, "draining": True})

    app = web.Application(middlewares=[errors_as_json])
    app.add_routes(
        [
            web.get("/statistics", statistics),
            web.get("/metrics", metrics),
            web.post("/drain", drain),
        ]
    )
    return app
