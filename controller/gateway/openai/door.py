"""OpenAI's API for the public model: chats, completions, models.

A request becomes the requests that a Triton client would have sent, one per choice, which
`Proxy.handle` has answered; here their messages become OpenAI's objects.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from trt_mtp.controller.gateway.access.authenticator import Authenticator, Caller
from trt_mtp.controller.gateway.call import InferenceCall, deadline_at
from trt_mtp.controller.gateway.http.answering import (
    Answering,
    caller_of,
    forwarded_headers,
)
from trt_mtp.controller.gateway.http.body import received
from trt_mtp.controller.gateway.http.events import EventStream
from trt_mtp.controller.gateway.http.json_pieces import dumped
from trt_mtp.controller.gateway.http.sending import send_whole
from trt_mtp.controller.gateway.openai.answer_reader import (
    OPTIONAL_OUTPUTS,
    TEXT,
    AnswerReader,
    read_closing,
)
from trt_mtp.controller.gateway.openai.asked import Asked, BodyReader, Choice
from trt_mtp.controller.gateway.openai.chunks import DONE, Chunks, last_chunk
from trt_mtp.controller.gateway.openai.cors import Cors
from trt_mtp.controller.gateway.openai.deltas import Delta
from trt_mtp.controller.gateway.openai.errors import (
    ParameterError,
    add_request_id,
    openai_errors,
    refusal_of,
)
from trt_mtp.controller.gateway.openai.logprobs import places_of
from trt_mtp.controller.gateway.openai.model_names import ModelNames
from trt_mtp.controller.gateway.openai.objects import (
    Answered,
    decision_headers,
    token_counts,
    whole_answer,
)
from trt_mtp.controller.gateway.openai.options import OpenAiOptions
from trt_mtp.controller.gateway.openai.reply import Reply
from trt_mtp.controller.gateway.openai.vendor import timeout_of
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.contract import LOGPROBS
from trt_mtp.serve.json_weight import MAX_SHORT
from trt_mtp.serve.kserve import text_output

T = TypeVar("T")
ReadBody = Callable[[Mapping[str, str], bytes], Asked]

JSON_TYPE = "application/json"


class OpenAiDoor:
    """Handlers of /v1; what they raise is for `openai_errors`."""

    def __init__(
        self,
        proxy: Proxy,
        authenticator: Authenticator,
        answering: Answering,
        options: OpenAiOptions,
    ) -> None:
        self._proxy = proxy
        self._authenticator = authenticator
        self._answering = answering
        self._options = options
        self._names = ModelNames(proxy.pool, options.aliases)
        self._reader = BodyReader(proxy.pool.public_name, self._names)

    def app(self) -> web.Application:
        """What is under /v1."""
        app = web.Application(middlewares=[openai_errors])
        app.on_response_prepare.append(add_request_id)
        if self._options.origins:
            Cors(self._options.origins).add_to(app)
        app.add_routes(
            [
                web.post("/chat/completions", partial(self._answer, self._reader.chat)),
                web.post("/completions", partial(self._answer, self._reader.completion)),
                web.get("/models", self._models),
                web.get("/models/{name:.+}", self._model),
            ]
        )
        return app

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._caller(request)
        return web.json_response(self._names.listing())

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self._caller(request)
        return web.json_response(self._names.entry(request.match_info["name"]))

    async def _answer(self, read: ReadBody, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        with self._proxy.metrics.refusing():
            _check_type(request)
        async with received(request, caller.room) as body:
            with self._proxy.metrics.refusing():
                read_body = partial(read, request.headers)
                asked = await self._answering.bodies.read(body, caller.room, read_body)
            calls = [
                self._open(request, caller, choice) async for choice in one_by_one(asked.choices)
            ]
            with self._answering.noted(caller):
                if asked.streams:
                    return await self._stream(request, asked, calls)
                response = await self._whole(asked, calls)
        return await send_whole(request, response, caller.room)

    def _caller(self, request: web.Request) -> Caller:
        return caller_of(self._authenticator, request)

    def _open(self, request: web.Request, caller: Caller, choice: Choice) -> InferenceCall:
        until = deadline_at(choice.request, timeout_of(request.headers))
        metadata = forwarded_headers(request)
        call = self._proxy.open(
            choice.request, caller, metadata, until, choice.features, OPTIONAL_OUTPUTS
        )
        call.seed = choice.seed or call.seed
        return call

    async def _whole(self, asked: Asked, calls: Sequence[InferenceCall]) -> web.Response:
        """All choices in one object."""
        responses = await together([self._proxy.single_answer(call) for call in calls])
        size = sum(response.ByteSize() for response in responses)
        work = partial(_answer_body, asked, responses, calls, in_pieces=size > MAX_SHORT)
        body = await self._answering.answers.do(size, calls[0].caller.room, work)
        headers = decision_headers(asked, calls[0])
        return web.Response(body=body, content_type=JSON_TYPE, charset="utf-8", headers=headers)

    async def _stream(
        self, request: web.Request, asked: Asked, calls: Sequence[InferenceCall]
    ) -> web.StreamResponse:
        """Chunks of all choices as they come."""
        events = EventStream(request, calls[0].caller.room)
        streamed = [StreamedChoice(asked, i, call, events) for i, call in enumerate(calls)]
        keeping = asyncio.create_task(
            events.keep_alive(self._options.keep_alive_s, streamed[0].idle)
        )
        try:
            await together([self._proxy.handle(each.call, each.send) for each in streamed])
            answered = [each.answered() for each in streamed]
        except TrtMtpError as error:
            if not events.has_begun:
                raise
            refusal = refusal_of(error, "messages" if asked.is_chat else "prompt")
            await events.write(b"data: %b\n\n" % refusal.body().encode())
            return await events.end()
        finally:
            keeping.cancel()
        if asked.wants_usage:
            events.hold(last_chunk(asked, answered))
        events.hold(DONE)
        return await events.end()


class StreamedChoice:
    """One choice on its way to the client."""

    def __init__(self, asked: Asked, index: int, call: InferenceCall, events: EventStream) -> None:
        self.call = call
        self._asked = asked
        self._events = events
        self._reader = AnswerReader()
        self._chunks = Chunks(asked, index)
        self._reply: Reply | None = None  # as the first variant's checkpoint has it read

    async def send(self, raw: bytes) -> None:
        """Send what a message of the answer brings."""
        if len(raw) <= MAX_SHORT:
            chunk, is_last = self._chunks_of(raw)
        else:
            chunk, is_last = await asyncio.to_thread(self._chunks_of, raw)
        if is_last and len(chunk) <= MAX_SHORT:  # soon followed by what ends the stream
            self._events.hold(chunk)
        elif chunk:
            if not self._events.has_begun:
                self._events.begin_with(decision_headers(self._asked, self.call))
            await self._events.write(chunk)

    def _chunks_of(self, raw: bytes) -> tuple[bytes, bool]:
        """What a message becomes, and whether that is the answer's end."""
        text = self._reader.read(raw)
        if self._reader.places:
            self._chunks.tell(self._reader.places)
            self._reader.places = []
        if self._asked.wants_running_usage:
            self._count()
        if self._reply is None:
            self._reply = Reply(self._asked, self.call.chat_format)
        reply, closing = self._reply, self._reader.closing
        if reply.is_plain:
            chunk = self._chunks.text(text) if text else b""
        else:
            deltas = reply.push(text) + ([] if closing is None else reply.end())
            chunk = b"".join([self._chunk(reply, delta) for delta in deltas])
        if closing is not None:
            reason = reply.finish_reason(closing.finish_reason)
            return chunk + self._chunks.end(reason), True
        return chunk, False

    def idle(self) -> bytes:
        """What is sent while nothing comes."""
        if not self._events.has_begun:
            self._events.begin_with(decision_headers(self._asked, self.call))
        return self._chunks.idle()

    def _count(self) -> None:
        """Have the chunks tell this choice's tokens so far; a variant may not tell them."""
        num_input, num_output = self._reader.num_input_tokens, self.call.num_output_tokens()
        if num_input and num_output:
            self._chunks.usage = token_counts(num_input, num_output)

    def _chunk(self, reply: Reply, delta: Delta) -> bytes:
        if delta.kind == "content":
            return self._chunks.text(delta.text)
        return self._chunks.delta(reply.delta(delta))

    def answered(self) -> Answered:
        """How it ended; raises AnswerError for an answer that has no end."""
        return Answered("", self._reader.end(), self.call)


def _check_type(request: web.Request) -> None:
    if "Content-Type" in request.headers and request.content_type != JSON_TYPE:
        message = f"the body is {request.content_type[:80]}: send Content-Type {JSON_TYPE}"
        raise ParameterError(message, None, "unsupported_media_type", 415)


def _answer_body(
    asked: Asked, responses: Sequence[Any], calls: Sequence[InferenceCall], *, in_pieces: bool
) -> bytes:
    """All choices in one object."""
    answered = [
        Answered(
            text_output(response, TEXT),
            read_closing(response),
            call,
            places_of(text_output(response, LOGPROBS)),
        )
        for response, call in zip(responses, calls, strict=True)
    ]
    return dumped(whole_answer(asked, answered), in_pieces=in_pieces)


async def one_by_one(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a turn for everybody else between two: a request may have a hundred."""
    for number, item in enumerate(items):
        if number:
            await asyncio.sleep(0)
        yield item


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first failure ends the others and is raised."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) async for each in one_by_one(work)]
    except* (TrtMtpError, ConnectionResetError) as failures:
        raise failures.exceptions[0] from None
    finally:
        for each in work:  # those that were not begun
            each.close()
    return [task.result() for task in tasks]
