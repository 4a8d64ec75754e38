"""A client's inference calls: a stream of requests, each answered on its own, or a single one.

Nothing buffers without bound. A stream's message is written before the next of the same answer is
read from Triton, so a client that reads slowly stops its own variant's stream, by HTTP/2 flow
control, and nobody else's; what waits for it is what the transports' windows hold.
"""

import asyncio
import contextlib
import time
from typing import Any

import grpc

from trt_mtp.controller.gateway.answering import Answering
from trt_mtp.controller.gateway.failure import AnswerError, RpcFailure, failure
from trt_mtp.controller.gateway.guard import Caller
from trt_mtp.controller.gateway.kserve import (
    InferRequest,
    error_response,
    parameter_value,
    parse_stream_response,
    read_request,
)
from trt_mtp.controller.gateway.upstream import Metadata
from trt_mtp.controller.request import is_streaming
from trt_mtp.errors import InputError, TrtMtpError

# A client that sends it gets a failure as the stream's gRPC status. Triton is not sent it: 2.51
# (24.10) crashes with a segmentation fault when a decoupled model goes on after an error.
GRPC_ERRORS = ("triton_grpc_error", "true")
MAX_REQUESTS = 1_024  # of one stream that are not answered yet; then no more are read from it
GONE_S = 1.0  # in which gRPC tells that a client is gone
LAST_REQUESTS_S = 1.0  # for those that are on their way when the gateway is to end
FORWARDED_METADATA = frozenset({"traceparent", "tracestate"})


def forwarded_metadata(context: Any) -> Metadata:
    """What of a client's metadata goes on to Triton."""
    return tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key in FORWARDED_METADATA
    )


def deadline_s(request: InferRequest, remaining_s: float | None) -> float | None:
    """When a request's time is over: its call's, or Triton's `timeout` (µs) where that is less."""
    parameters = request.message.parameters
    value = parameter_value(parameters["timeout"]) if "timeout" in parameters else None
    limits = [] if remaining_s is None else [remaining_s]
    if isinstance(value, int) and value > 0:
        limits.append(value / 1e6)
    return time.monotonic() + min(limits) if limits else None


class Relay:
    """One ModelStreamInfer call of a client.

    Requests to the public model are answered side by side, each on an upstream stream of its own.
    All others pass unread, one after the other: Triton 2.51 aborts when it refuses a request on a
    stream on which another one's answer is under way.
    """

    def __init__(self, answering: Answering, caller: Caller, context: Any) -> None:
        self._answering = answering
        self._caller = caller
        self._pool = answering.dispatcher.pool
        self._context = context
        self._metadata = forwarded_metadata(context)
        self._fails_whole = GRPC_ERRORS in (context.invocation_metadata() or ())
        self._passing = asyncio.Lock()  # held by the request to another model that has its turn
        self._writing = asyncio.Lock()
        self._room = asyncio.Semaphore(MAX_REQUESTS)
        self._tasks = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None
        self._is_reading = False
        self._is_cut_off = False

    async def run(self) -> None:
        """Carry messages until both sides are done; raises RpcFailure for any other end."""
        ended: RpcFailure | None = None
        try:
            async with self._tasks:
                self._reader = self._tasks.create_task(self._read_requests())
                await asyncio.wait([self._reader])
        except* RpcFailure as group:
            found = group.exceptions[0]
            assert isinstance(found, RpcFailure)
            ended = found
        if ended is None and self._is_cut_off:
            ended = RpcFailure(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")
        if ended is not None:
            raise ended

    def drain(self) -> None:
        """Take the last requests; the stream ends when all are answered."""
        asyncio.get_running_loop().call_later(LAST_REQUESTS_S, self._cut_off)

    def _cut_off(self) -> None:
        """Read no more requests of a client that isn't done."""
        if self._reader is None or self._reader.done():
            return
        self._is_cut_off = True
        if self._is_reading:
            self._reader.cancel()

    async def _read_requests(self) -> None:
        while not self._is_cut_off:
            self._is_reading = True
            raw = await self._context.read()
            self._is_reading = False
            if raw is grpc.aio.EOF:
                break
            await self._forward(raw)

    async def _forward(self, raw: bytes) -> None:
        try:
            request = read_request(raw)
        except InputError as error:
            raise failure(error) from None
        is_public = request.message.model_name == self._pool.public_name
        await self._room.acquire()
        answering = self._answer(request) if is_public else self._pass_on(raw)
        self._tasks.create_task(answering).add_done_callback(self._has_room)

    def _has_room(self, _: "asyncio.Task[None]") -> None:
        self._room.release()

    async def _answer(self, request: InferRequest) -> None:
        flight = None
        try:
            flight = self._answering.dispatcher.open(request, self._caller)
            limit_s = deadline_s(request, self._context.time_remaining())
            await self._answering.answer(flight, self._write, self._metadata, limit_s)
        except TrtMtpError as error:
            attempt = flight.attempt if flight else None
            if self._fails_whole:
                raise failure(error) from None
            parameters = attempt.parameters if attempt else {}
            await self._write(error_response(str(error), request.message.id, parameters))

    async def _write(self, raw: bytes) -> None:
        async with self._writing:  # gRPC takes one message at a time
            try:
                await self._context.write(raw)
            except grpc.aio.InternalError:  # the client is gone, and gRPC is about to cancel us
                await asyncio.sleep(GONE_S)
                raise asyncio.CancelledError from None

    async def _pass_on(self, raw: bytes) -> None:
        """Forward a request to another model, and what comes back, on a stream of its own."""
        async with self._passing:
            try:
                backend = self._pool.first_live()
            except TrtMtpError as error:
                raise failure(error) from None
            call = backend.open_stream(self._context.time_remaining(), self._metadata)
            try:
                await _write(call.write(raw))
                await _write(call.done_writing())
                while (answer := await call.read()) is not grpc.aio.EOF:
                    await self._write(answer)
            except grpc.aio.AioRpcError as error:
                raise RpcFailure(error.code(), error.details()) from None
            finally:
                call.cancel()


async def _write(sending: Any) -> None:
    """Await a write to Triton; whoever reads that call learns of its failure, with the reason."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await sending


async def answer_once(
    answering: Answering,
    request: InferRequest,
    caller: Caller,
    metadata: Metadata,
    deadline_s: float | None,
) -> Any:
    """The one pb.ModelInferResponse to a request that is not streamed; raises TrtMtpError.

    Triton gives no single answers for the variants' kind of model, so it is asked for a stream.
    """
    answers: list[bytes] = []

    async def keep(raw: bytes) -> None:
        answers.append(raw)

    if is_streaming(request):
        answering.dispatcher.refused()
        raise InputError(
            "one answer is given here: for streaming, use ModelStreamInfer or generate_stream"
        )
    flight = answering.dispatcher.open(request, caller)
    await answering.answer(flight, keep, metadata, deadline_s)
    for raw in answers:
        response = parse_stream_response(raw).infer_response
        if response.outputs:
            return response
    raise AnswerError(grpc.StatusCode.INTERNAL, "the variant ended without an answer")
