"""Triton's generate, generate_stream and infer over HTTP, answered as gRPC's calls are."""

import asyncio
from typing import Any

from aiohttp import web

from trt_mtp.controller.gateway.answering import Answering
from trt_mtp.controller.gateway.generate import generate_answer, read_generate
from trt_mtp.controller.gateway.guard import Caller, Guard
from trt_mtp.controller.gateway.http_errors import error_body
from trt_mtp.controller.gateway.kserve import InferRequest, parse_stream_response, read_request
from trt_mtp.controller.gateway.kserve_http import JSON_SIZE, infer_answer, read_infer
from trt_mtp.controller.gateway.relay import FORWARDED_METADATA, answer_once, deadline_s
from trt_mtp.controller.gateway.upstream import Metadata
from trt_mtp.errors import InputError, TrtMtpError

BODY_TIMEOUT_S = 60.0  # for a client to send its request
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class GenerateHandlers:
    """Handlers for the public model; what they raise is for `errors_as_json`."""

    def __init__(self, answering: Answering, guard: Guard, model: str) -> None:
        self._answering = answering
        self._guard = guard
        self._model = model

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """An answer in one piece."""
        caller, infer_request = await self._read(request)
        response = await self._answer(request, caller, infer_request)
        return web.Response(text=generate_answer(response), content_type="application/json")

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """An answer in one piece, in the form of tritonclient.http."""
        caller = self._caller(request)
        body = await _body(request)
        message, wanted = read_infer(body, request.headers.get(JSON_SIZE), self._model)
        infer_request = read_request(message.SerializeToString())
        response = await self._answer(request, caller, infer_request)
        answer = infer_answer(response, wanted)
        if answer.json_size is None:
            return web.Response(body=answer.body, content_type="application/json")
        return web.Response(body=answer.body, headers={JSON_SIZE: str(answer.json_size)})

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """An answer as server-sent events."""
        caller, infer_request = await self._read(request)
        events = _Events(request)
        try:
            flight = self._answering.dispatcher.open(infer_request, caller)
            limit_s = deadline_s(infer_request, None)
            await self._answering.answer(flight, events.send, _metadata(request), limit_s)
        except TrtMtpError as error:
            if not events.has_begun:
                raise
            await events.fail(error)
        return await events.end()

    async def _read(self, request: web.Request) -> tuple[Caller, InferRequest]:
        caller = self._caller(request)
        message = read_generate(await _body(request), self._model)
        return caller, read_request(message.SerializeToString())

    def _caller(self, request: web.Request) -> Caller:
        return self._guard.caller(request.headers.get("Authorization", ""))

    async def _answer(
        self, request: web.Request, caller: Caller, infer_request: InferRequest
    ) -> Any:
        """The pb.ModelInferResponse to a request that is not streamed."""
        limit_s = deadline_s(infer_request, None)
        return await answer_once(
            self._answering, infer_request, caller, _metadata(request), limit_s
        )


class _Events:
    """The response to one request, begun with its first event."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=STREAM_HEADERS)

    @property
    def has_begun(self) -> bool:
        return self._response.prepared

    async def send(self, raw: bytes) -> None:
        """Send a message of the answer."""
        infer_response = parse_stream_response(raw).infer_response
        if infer_response.outputs:  # a last message that brings nothing is gRPC's
            await self._write(generate_answer(infer_response))

    async def fail(self, error: TrtMtpError) -> None:
        """Send what ended the answer."""
        await self._write(error_body(str(error)))

    async def end(self) -> web.StreamResponse:
        """The whole response."""
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write_eof()
        return self._response

    async def _write(self, event: str) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(b"data: %b\n\n" % event.encode())


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise InputError(f"the request's body was not sent within {BODY_TIMEOUT_S:g} s") from None


def _metadata(request: web.Request) -> Metadata:
    """The headers that go on to Triton."""
    return tuple(
        (name, request.headers[name]) for name in FORWARDED_METADATA if name in request.headers
    )
