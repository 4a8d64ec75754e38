"""The gateway's admin port: what it does, for whoever runs it; never on a public address."""

import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from trt_mtp.controller.gateway.http.errors import errors_as_json, refused
from trt_mtp.controller.gateway.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.gateway import Gateway


HEADER = "TRT-MTP-Admin"  # with any value: no page of another site can send it
HOSTS = ("127.0.0.1", "localhost")
HOST = re.compile(rf"(?:{'|'.join(map(re.escape, HOSTS))})(?::[0-9]{{1,5}})?", re.IGNORECASE)


@web.middleware
async def from_this_machine(request: web.Request, handler: Any) -> web.StreamResponse:
    """Refuse what a web page in a browser on this machine can send, by whatever name."""
    if not HOST.fullmatch(request.headers.get("Host", "")):
        return refused(403, f"the admin port answers as {' or '.join(HOSTS)} only")
    if "Origin" in request.headers:
        return refused(403, "the admin port is not for web pages: leave out the header Origin")
    if request.method == "POST" and HEADER not in request.headers:
        return refused(403, f"a POST to the admin port needs the header {HEADER}")
    response: web.StreamResponse = await handler(request)
    return response


def admin_app(gateway: "Gateway") -> web.Application:
    """GET /statistics and /metrics, POST /drain with the header HEADER."""

    async def statistics(_: web.Request) -> web.Response:
        return web.json_response(gateway.describe() | gateway.statistics())

    async def metrics(_: web.Request) -> web.Response:
        body = gateway.render_metrics()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def drain(_: web.Request) -> web.Response:
        gateway.on_drain()
        return web.json_response({"schema_version": 1, "draining": True})

    app = web.Application(middlewares=[errors_as_json, from_this_machine])
    app.add_routes(
        [
            web.get("/statistics", statistics),
            web.get("/metrics", metrics),
            web.post("/drain", drain),
        ]
    )
    return app
