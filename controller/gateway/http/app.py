"""The gateway's public HTTP: Triton's and OpenAI's paths for the public model, and metrics."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiohttp import web

from trt_mtp.controller.gateway.access.authenticator import Authenticator
from trt_mtp.controller.gateway.failure import ForbiddenError
from trt_mtp.controller.gateway.http.answering import Answering, caller_of
from trt_mtp.controller.gateway.http.errors import errors_as_json
from trt_mtp.controller.gateway.http.handlers import GenerateHandlers
from trt_mtp.controller.gateway.http.model_handlers import ModelHandlers
from trt_mtp.controller.gateway.http.rendering import SharedRendering
from trt_mtp.controller.gateway.metrics import CONTENT_TYPE
from trt_mtp.controller.gateway.openai.door import OpenAiDoor
from trt_mtp.controller.gateway.openai.options import OpenAiOptions
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.public_model import PublicModel
from trt_mtp.controller.request import MAX_NAME_CHARS, PUBLIC_VERSION

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def from_known_pages(origins: Collection[str]) -> Any:
    """A middleware that refuses POSTs of web pages but those of `origins`.

    A browser says with every POST where its page is from. Without tokens, any page that somebody
    near the gateway looks at could use it, and read the answers where its own name leads here.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        is_known = not origin or origin in origins or "*" in origins
        if request.method == "POST" and not is_known:
            raise ForbiddenError(
                f"web pages of {origin[:MAX_NAME_CHARS]!r} may not use this gateway: it has no "
                "tokens, and --cors-origin does not name them"
            )
        return await handler(request)

    return check


class PublicHttp:
    """Handlers; what they raise is for `errors_as_json`."""

    def __init__(
        self,
        proxy: Proxy,
        authenticator: Authenticator,
        render_metrics: Callable[[], bytes],
        openai: OpenAiOptions,
    ) -> None:
        self._pool = proxy.pool
        self._authenticator = authenticator
        self._rendering = SharedRendering(render_metrics)
        self._origins = openai.origins
        self._answering = Answering()
        self._generate = GenerateHandlers(proxy, authenticator, self._answering)
        self._openai = OpenAiDoor(proxy, authenticator, self._answering, openai)
        self._models = ModelHandlers(self._pool.public_name, PublicModel(self._pool))

    def look(self) -> None:
        """End the answers to callers that are no longer known; call it now and then."""
        self._answering.look()

    def app(self, max_body_bytes: int) -> web.Application:
        """All paths; those of health are open to everybody."""
        middlewares = [errors_as_json]
        if not self._authenticator.has_tokens:
            middlewares.append(from_known_pages(self._origins))
        app = web.Application(middlewares=middlewares, client_max_size=max_body_bytes)
        app.add_routes(
            [
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
                web.get("/health", self._health),
                # HAProxy's `option httpchk PATH` asks with this method
                web.options("/v2/health/live", self._live),
                web.options("/v2/health/ready", self._ready),
                web.options("/health", self._health),
                web.get("/metrics", self._for_callers(self._metrics)),
            ]
        )
        model = f"/v2/models/{self._pool.public_name}"
        for path in (model, f"{model}/versions/{PUBLIC_VERSION}"):
            app.add_routes(
                [
                    web.get(f"{path}/ready", self._for_callers(self._ready)),
                    web.post(f"{path}/generate", self._generate.generate),
                    web.post(f"{path}/generate_stream", self._generate.generate_stream),
                    web.post(f"{path}/infer", self._generate.infer),
                ]
            )
        app.add_routes(self._models.routes(self._for_callers))
        app.add_subapp("/v1", self._openai.app())
        return app

    def _for_callers(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            caller_of(self._authenticator, request)
            return await handler(request)

        return handle

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._pool.is_ready else 400)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._pool.is_ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await self._rendering.get()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
