"""The gateway's public HTTP: Triton's paths for the public model, and the metrics."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.answering import Answering
from trt_mtp.controller.gateway.generate import model_metadata
from trt_mtp.controller.gateway.guard import Guard
from trt_mtp.controller.gateway.http_errors import errors_as_json
from trt_mtp.controller.gateway.http_generate import GenerateHandlers
from trt_mtp.controller.gateway.metrics import CONTENT_TYPE
from trt_mtp.controller.gateway.public_model import PublicModel
from trt_mtp.controller.request import PUBLIC_VERSION

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PublicHttp:
    """Handlers; what they raise is for `errors_as_json`."""

    def __init__(self, answering: Answering, guard: Guard) -> None:
        self._dispatcher = answering.dispatcher
        self._pool = answering.dispatcher.pool
        self._guard = guard
        self._generate = GenerateHandlers(answering, guard, self._pool.public_name)
        self._metadata_answer = PublicModel(self._pool).answers()["ModelMetadata"]

    def app(self, max_body_bytes: int) -> web.Application:
        """All paths; those of health are open to everybody."""
        app = web.Application(middlewares=[errors_as_json], client_max_size=max_body_bytes)
        app.add_routes(
            [
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
                web.get("/metrics", self._for_callers(self._metrics)),
            ]
        )
        model = f"/v2/models/{self._pool.public_name}"
        for path in (model, f"{model}/versions/{PUBLIC_VERSION}"):
            app.add_routes(
                [
                    web.get(f"{path}/ready", self._for_callers(self._ready)),
                    web.get(path, self._for_callers(self._metadata)),
                    web.post(f"{path}/generate", self._generate.generate),
                    web.post(f"{path}/generate_stream", self._generate.generate_stream),
                    web.post(f"{path}/infer", self._generate.infer),
                ]
            )
        return app

    def _for_callers(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self._guard.caller(request.headers.get("Authorization", ""))
            return await handler(request)

        return handle

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._pool.is_ready else 400)

    async def _metadata(self, _: web.Request) -> web.Response:
        question = pb.ModelMetadataRequest(name=self._pool.public_name)
        raw = await self._metadata_answer(question.SerializeToString(), None)
        return web.json_response(model_metadata(pb.ModelMetadataResponse.FromString(raw)))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._dispatcher.render_metrics(), headers={"Content-Type": CONTENT_TYPE}
        )
