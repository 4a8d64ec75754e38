"""Triton's generate and generate_stream over HTTP, answered as gRPC's calls are."""

import asyncio

from aiohttp import web

from trt_mtp.controller.answering import Answering
from trt_mtp.controller.generate import generate_answer, read_generate
from trt_mtp.controller.guard import Caller, Guard
from trt_mtp.controller.http_errors import error_body
from trt_mtp.controller.kserve import InferRequest, parse_stream_response, read_request
from trt_mtp.controller.relay import FORWARDED_METADATA, answer_once, deadline_s
from trt_mtp.controller.upstream import Metadata
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
        response = await answer_once(
            self._answering,
            infer_request,
            caller,
            _metadata(request),
            deadline_s(infer_request, None),
        )
        return web.Response(text=generate_answer(response), content_type="application/json")

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
        caller = self._guard.caller(request.headers.get("Authorization", ""))
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            raise InputError(
                f"the request's body was not sent within {BODY_TIMEOUT_S:g} s"
            ) from None
        message = read_generate(body, self._model)
        return caller, read_request(message.SerializeToString())


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


def _metadata(request: web.Request) -> Metadata:
    """The headers that go on to Triton."""
    return tuple(
        (name, request.headers[name]) for name in FORWARDED_METADATA if name in request.headers
    )
