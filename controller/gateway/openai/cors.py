"""Which web pages' scripts may use the API: CORS, https://fetch.spec.whatwg.org/#http-cors-protocol."""

from collections.abc import Collection
from typing import Any

from aiohttp import web

from trt_mtp.controller.gateway.openai.errors import REQUEST_ID
from trt_mtp.controller.gateway.openai.vendor import PREFIX

MAX_AGE_S = 600  # for which a browser remembers a preflight
EXPOSED = (REQUEST_ID, *(PREFIX + name for name in ("variant", "task", "decision-id")))


class Cors:
    """Answers preflights, and says on every response that a page of these origins may read it."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = origins

    def add_to(self, app: web.Application) -> None:
        """Have an application do it."""
        app.middlewares.insert(0, self._preflight())
        app.on_response_prepare.append(self._allow)

    def _preflight(self) -> Any:
        @web.middleware
        async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
            asked = request.headers.get("Access-Control-Request-Method")
            if request.method != "OPTIONS" or asked is None:
                response: web.StreamResponse = await handler(request)
                return response
            headers = {"Access-Control-Allow-Methods": "GET, POST"}
            wanted = request.headers.get("Access-Control-Request-Headers")
            if wanted:
                headers["Access-Control-Allow-Headers"] = wanted
            return web.Response(
                status=204, headers=headers | {"Access-Control-Max-Age": str(MAX_AGE_S)}
            )

        return answer

    async def _allow(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            return
        response.headers["Vary"] = "Origin"
        if origin in self._origins or "*" in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = ", ".join(EXPOSED)
