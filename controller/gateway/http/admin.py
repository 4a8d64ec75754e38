"""The gateway's admin port: what it does, for whoever runs it; never on a public address."""

import asyncio
import json
import os
import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from trt_mtp.controller.gateway.access.config import AccessConfig, ConnectionLimits
from trt_mtp.controller.gateway.http.errors import errors_as_json, refused
from trt_mtp.controller.gateway.http.peer_user import connected_user, may_steer
from trt_mtp.controller.gateway.http.rendering import SharedRendering
from trt_mtp.controller.gateway.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.gateway import Gateway


# of its own: clients' ports may have all files but OWN_FILES
ACCESS = AccessConfig(connections=ConnectionLimits(max_connections=32))
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
    """GET /statistics and /metrics; POST /drain with the header HEADER, by the own user or root."""

    def tell() -> bytes:
        return json.dumps(gateway.describe() | gateway.statistics()).encode()

    asking = asyncio.Lock()  # one at a time: it takes a while
    told, rendered = SharedRendering(tell), SharedRendering(gateway.render_metrics)

    async def statistics(_: web.Request) -> web.Response:
        return web.Response(body=await told.get(), content_type="application/json")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await rendered.get(), headers={"Content-Type": CONTENT_TYPE})

    async def drain(request: web.Request) -> web.Response:
        ends = (request.get_extra_info(name) for name in ("peername", "sockname"))
        async with asking:
            user = await asyncio.to_thread(connected_user, *ends)
        if not may_steer(user):
            whom = f"the user that runs the gateway ({os.geteuid()}) and root"
            other = "a user that can't be told" if user is None else f"user {user}"
            return refused(403, f"draining is for {whom}; the connection is of {other}")
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
