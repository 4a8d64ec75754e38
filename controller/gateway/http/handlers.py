"""Triton's generate, generate_stream and infer over HTTP, answered as gRPC's calls are."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from trt_mtp.controller.gateway.access.authenticator import Authenticator, Caller
from trt_mtp.controller.gateway.call import deadline_at
from trt_mtp.controller.gateway.http.answering import (
    Answering,
    caller_of,
    forwarded_headers,
)
from trt_mtp.controller.gateway.http.body import received
from trt_mtp.controller.gateway.http.errors import error_body
from trt_mtp.controller.gateway.http.events import EventStream
from trt_mtp.controller.gateway.http.generate_json import generate_answer, read_generate
from trt_mtp.controller.gateway.http.kserve_json import (
    JSON_SIZE,
    BinaryOutputs,
    infer_answer,
    read_infer,
)
from trt_mtp.controller.gateway.http.sending import send_whole
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.kserve import InferRequest, parse_stream_response, read_request

T = TypeVar("T")


class GenerateHandlers:
    """Handlers for the public model; what they raise is for `errors_as_json`."""

    def __init__(self, proxy: Proxy, authenticator: Authenticator, answering: Answering) -> None:
        self._proxy = proxy
        self._authenticator = authenticator
        self._model = proxy.pool.public_name
        self._answering = answering

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """An answer in one piece."""
        caller = self._caller(request)
        async with received(request, caller.room) as body:
            infer_request = await self._read(caller, body, self._read_generate)
            infer_response = await self._answer(request, caller, infer_request)
        text = generate_answer(infer_response)
        response = web.Response(text=text, content_type="application/json")
        return await send_whole(request, response, caller.room)

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """An answer in one piece, in the form of tritonclient.http."""
        caller, json_size = self._caller(request), request.headers.get(JSON_SIZE)
        async with received(request, caller.room) as body:
            read = partial(self._read_infer, json_size)
            infer_request, wanted = await self._read(caller, body, read)
            infer_response = await self._answer(request, caller, infer_request)
        answer = infer_answer(infer_response, wanted)
        if answer.json_size is None:
            response = web.Response(body=answer.body, content_type="application/json")
        else:
            response = web.Response(body=answer.body, headers={JSON_SIZE: str(answer.json_size)})
        return await send_whole(request, response, caller.room)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """An answer as server-sent events."""
        caller = self._caller(request)
        events = EventStream(request, caller.room)

        async def send(raw: bytes) -> None:
            infer_response = parse_stream_response(raw).infer_response
            if infer_response.outputs:  # a last message that brings nothing is gRPC's
                await events.write(_event(generate_answer(infer_response)))

        async with received(request, caller.room) as body:
            infer_request = await self._read(caller, body, self._read_generate)
            try:
                until = deadline_at(infer_request, None)
                call = self._proxy.open(infer_request, caller, forwarded_headers(request), until)
                with self._answering.noted(caller):
                    await self._proxy.handle(call, send)
            except TrtMtpError as error:
                if not events.has_begun:
                    raise
                await events.write(_event(error_body(str(error))))
        return await events.end()

    async def _read(self, caller: Caller, body: bytes, read: Callable[[bytes], T]) -> T:
        with self._proxy.metrics.refusing():
            return await self._answering.bodies.read(body, caller.room, read)

    def _read_generate(self, body: bytes) -> InferRequest:
        return read_request(read_generate(body, self._model).SerializeToString())

    def _read_infer(self, json_size: str | None, body: bytes) -> tuple[InferRequest, BinaryOutputs]:
        message, wanted = read_infer(body, json_size, self._model)
        return read_request(message.SerializeToString()), wanted

    def _caller(self, request: web.Request) -> Caller:
        return caller_of(self._authenticator, request)

    async def _answer(
        self, request: web.Request, caller: Caller, infer_request: InferRequest
    ) -> Any:
        """The pb.ModelInferResponse to a request that is not streamed."""
        until = deadline_at(infer_request, None)
        with self._answering.noted(caller):
            return await self._proxy.answer_once(
                infer_request, caller, forwarded_headers(request), until
            )


def _event(data: str) -> bytes:
    return b"data: %b\n\n" % data.encode()
