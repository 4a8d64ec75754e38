"""Triton's HTTP paths that describe the server and the public model."""

from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.http.body import read_body
from trt_mtp.controller.gateway.http.generate_json import json_object
from trt_mtp.controller.gateway.http.model_json import message_json
from trt_mtp.controller.gateway.public_model import PublicModel
from trt_mtp.controller.request import PUBLIC_VERSION
from trt_mtp.errors import InputError

INDEX_BYTES = 1_024  # of the body of a question for the index, which has one key


class ModelHandlers:
    """Handlers for callers that are known; what they raise is for `errors_as_json`."""

    def __init__(self, public_name: str, public_model: PublicModel) -> None:
        self._name = public_name
        self._answers = public_model.answers()

    def routes(self, for_callers: Callable[[Any], Any]) -> Iterable[web.RouteDef]:
        """All paths; `for_callers` keeps others out."""
        yield web.get("/v2", for_callers(self.server))
        yield web.get("/v2/models/stats", for_callers(self.all_statistics))
        yield web.post("/v2/repository/index", for_callers(self.index))
        model = f"/v2/models/{self._name}"
        for path in (model, f"{model}/versions/{PUBLIC_VERSION}"):
            yield web.get(path, for_callers(self.metadata))
            yield web.get(f"{path}/config", for_callers(self.config))
            yield web.get(f"{path}/stats", for_callers(self.statistics))

    async def server(self, _: web.Request) -> web.Response:
        """Name, version and extensions."""
        return await self._answer(pb.ServerMetadataRequest(), pb.ServerMetadataResponse)

    async def metadata(self, _: web.Request) -> web.Response:
        """The public model's tensors."""
        question = pb.ModelMetadataRequest(name=self._name)
        return await self._answer(question, pb.ModelMetadataResponse)

    async def config(self, _: web.Request) -> web.Response:
        """The public model's configuration."""
        question = pb.ModelConfigRequest(name=self._name)
        return await self._answer(question, pb.ModelConfigResponse, "config")

    async def statistics(self, _: web.Request) -> web.Response:
        """The public model's statistics."""
        question = pb.ModelStatisticsRequest(name=self._name)
        return await self._answer(question, pb.ModelStatisticsResponse)

    async def all_statistics(self, _: web.Request) -> web.Response:
        """The statistics of all models, the public one first."""
        return await self._answer(pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse)

    async def index(self, request: web.Request) -> web.Response:
        """The models there are; those that are ready if the body says so."""
        body = await read_body(request, INDEX_BYTES)
        ready = json_object(body).get("ready", False) if body.strip() else False
        if not isinstance(ready, bool):
            raise InputError(f"ready is {ready!r:.80}: expected true or false")
        found = await self._ask(pb.RepositoryIndexRequest(ready=ready), pb.RepositoryIndexResponse)
        listed = [message_json(model) for model in found.models]
        return web.json_response([{k: v for k, v in entry.items() if v} for entry in listed])

    async def _answer(self, question: Any, kind: Any, part: str = "") -> web.Response:
        found = message_json(await self._ask(question, kind))
        return web.json_response(found[part] if part else found)

    async def _ask(self, question: Any, kind: Any) -> Any:
        """The message of `kind` that answers a question about the server or the public model."""
        method = type(question).__name__.removesuffix("Request")
        raw = await self._answers[method](question.SerializeToString(), None)
        return kind.FromString(raw)
