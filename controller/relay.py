"""A client's calls carried to Triton and the answers back: streams, and single answers."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import grpc

from trt_mtp.controller.backend import Backend, Metadata
from trt_mtp.controller.dispatch import Dispatcher, Flight
from trt_mtp.controller.kserve import (
    FINAL,
    FINAL_BYTES,
    InferRequest,
    changed,
    error_response,
    is_final,
    parse_stream_response,
    read_request,
    response_head,
    spliced,
)
from trt_mtp.controller.request import is_streaming
from trt_mtp.errors import InputError, TrtMtpError

# A client that sends it gets a failure as the stream's gRPC status. Triton is not sent it: 2.51
# (24.10) crashes with a segmentation fault when a decoupled model goes on after an error.
GRPC_ERRORS = ("triton_grpc_error", "true")
FORWARDED_METADATA = frozenset({"traceparent", "tracestate"})


class RpcFailure(Exception):
    """Ends a client's call with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def failure(error: TrtMtpError) -> RpcFailure:
    """The status of a request that was refused."""
    is_bad = isinstance(error, InputError)
    code = grpc.StatusCode.INVALID_ARGUMENT if is_bad else grpc.StatusCode.UNAVAILABLE
    return RpcFailure(code, str(error))


def _triton_failure(response: Any) -> RpcFailure:
    """The status for an error in a stream response, which has lost its own code."""
    reached_a_model = FINAL in response.infer_response.parameters
    code = grpc.StatusCode.INTERNAL if reached_a_model else grpc.StatusCode.INVALID_ARGUMENT
    return RpcFailure(code, response.error_message)


def forwarded_metadata(context: Any) -> Metadata:
    """What of a client's metadata goes on to Triton."""
    return tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key in FORWARDED_METADATA
    )


@dataclass(slots=True, eq=False)
class Upstream:
    """A stream to one Triton server, for the public model or for all others."""

    backend: Backend
    call: Any
    flights: dict[bytes, Flight] = field(default_factory=dict)  # by upstream id


class Relay:
    """One ModelStreamInfer call of a client.

    Every message on it is routed on its own; streams to Triton are opened when they are needed,
    one for the public model and one for all others, whose messages pass unread.
    """

    def __init__(self, dispatcher: Dispatcher, context: Any) -> None:
        self._dispatcher = dispatcher
        self._context = context
        self._metadata = forwarded_metadata(context)
        self._fails_whole = GRPC_ERRORS in (context.invocation_metadata() or ())
        self._routed: Upstream | None = None
        self._passed: Upstream | None = None
        self._writing = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None
        self._is_reading = False
        self._is_draining = False

    async def run(self) -> None:
        """Carry messages until both sides are done; raises RpcFailure for any other end."""
        ended: RpcFailure | None = None
        try:
            async with self._tasks:
                self._reader = self._tasks.create_task(self._read_requests())
                await asyncio.wait([self._reader])
                for upstream in (self._routed, self._passed):
                    if upstream is not None:
                        await _write(upstream.call.done_writing())
        except* RpcFailure as group:
            found = group.exceptions[0]
            assert isinstance(found, RpcFailure)
            ended = found
        finally:
            for flight in self._routed.flights.values() if self._routed else ():
                self._dispatcher.finish(flight, "error" if ended else "cancelled")
        if ended is None and self._is_draining:
            ended = RpcFailure(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")
        if ended is not None:
            raise ended

    def drain(self) -> None:
        """Take no more requests; the stream ends when those in flight are answered."""
        self._is_draining = True
        if self._is_reading and self._reader is not None:
            self._reader.cancel()

    async def _read_requests(self) -> None:
        while not self._is_draining:
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
        if request.message.model_name == self._dispatcher.backend.public_name:
            await self._route(request)
        else:
            self._passed = self._passed or self._open(self._pass)
            await _write(self._passed.call.write(raw))

    async def _route(self, request: InferRequest) -> None:
        upstream = self._routed or self._open(self._answer)
        self._routed = upstream
        try:
            flight, raw = self._dispatcher.admit(request, upstream.flights)
        except TrtMtpError as error:
            await self._refuse(error, request.message.id)
            return
        upstream.flights[flight.upstream_id] = flight
        await _write(upstream.call.write(raw))

    async def _refuse(self, error: TrtMtpError, request_id: str) -> None:
        self._dispatcher.refused()
        if self._fails_whole:
            raise failure(error)
        await self._write(error_response(str(error), request_id, {}))

    def _open(self, carry: Any) -> Upstream:
        backend = self._dispatcher.backend
        call = backend.open_stream(self._context.time_remaining(), self._metadata)
        upstream = Upstream(backend, call)
        self._tasks.create_task(carry(upstream))
        return upstream

    async def _write(self, raw: bytes) -> None:
        async with self._writing:  # gRPC takes one message at a time
            await self._context.write(raw)

    async def _pass(self, upstream: Upstream) -> None:
        """Carry responses back unread."""
        try:
            while (raw := await upstream.call.read()) is not grpc.aio.EOF:
                await self._write(raw)
            await _raise_for_status(upstream.call)
        except grpc.aio.AioRpcError as error:
            raise RpcFailure(error.code(), error.details()) from None
        finally:
            upstream.call.cancel()
        self._passed = None

    async def _answer(self, upstream: Upstream) -> None:
        """Carry the public model's responses back."""
        try:
            while (raw := await upstream.call.read()) is not grpc.aio.EOF:
                await self._carry(upstream, raw)
            await _raise_for_status(upstream.call)
            reason = "Triton ended the stream"
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                upstream.backend.suspect({f.variant.name for f in upstream.flights.values()})
        finally:
            upstream.call.cancel()
        await self._lose(upstream, reason)

    async def _lose(self, upstream: Upstream, reason: str) -> None:
        """Answer for what was in flight on a stream that ended; the next request opens another."""
        lost = list(upstream.flights.values())
        upstream.flights.clear()
        if self._routed is upstream:
            self._routed = None
        for flight in lost:
            self._dispatcher.finish(flight, "error")
        for flight in lost:
            sentence = (
                f"variant {flight.variant.name} was lost before the answer was complete "
                f"({reason}); send the request again"
            )
            if self._fails_whole:
                raise RpcFailure(grpc.StatusCode.UNAVAILABLE, sentence)
            await self._write(error_response(sentence, flight.client_id, flight.parameters))

    async def _carry(self, upstream: Upstream, raw: bytes) -> None:
        head = response_head(raw)
        flight = upstream.flights.get(head.request_id) if head else None
        if (
            head is None
            or flight is None
            or FINAL_BYTES in raw
            or (flight.unasked is not None and flight.unasked.may_apply(raw))
        ):
            await self._carry_parsed(upstream, raw)
            return
        flight.saw(raw)
        await self._write(spliced(raw, head.start, flight.change))

    async def _carry_parsed(self, upstream: Upstream, raw: bytes) -> None:
        """Carry a response that ends a request, is an error, or has to lose outputs."""
        response = parse_stream_response(raw)
        flight = upstream.flights.get(response.infer_response.id.encode())
        if flight is None:
            await self._write(raw)
            return
        is_error, is_empty = bool(response.error_message), not response.infer_response.outputs
        if is_error and self._fails_whole:
            raise _triton_failure(response)
        flight.is_failed |= is_error
        if not is_empty:
            flight.saw(raw)
        if is_final(response):
            del upstream.flights[flight.upstream_id]
            self._dispatcher.finish(flight)
            if is_empty and not is_error and not flight.is_empty_final_wanted:
                return
        if flight.unasked is not None:
            flight.unasked.apply(response.infer_response)
        await self._write(changed(response, flight.change))


async def _write(sending: Any) -> None:
    """Await a write to Triton; whoever reads that call learns of its failure, with the reason."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await sending


async def _raise_for_status(call: Any) -> None:
    code = await call.code()
    if code != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )


async def answer_once(dispatcher: Dispatcher, request: InferRequest, context: Any) -> bytes:
    """The one ModelInferResponse to a request that is not streamed; raises RpcFailure.

    Triton gives no single answers for the variants' kind of model, so it is asked for a stream.
    """
    try:
        if is_streaming(request):
            raise InputError("ModelInfer gives one answer: use ModelStreamInfer to set streaming")
        flight, raw = dispatcher.admit(request, ())
    except TrtMtpError as error:
        dispatcher.refused()
        raise failure(error) from None
    metadata = forwarded_metadata(context)
    call = dispatcher.backend.open_stream(context.time_remaining(), metadata)
    broken = "cancelled"
    try:
        response = await _one_response(call, raw)
        flight.saw(response.SerializeToString())
        broken = ""
    except RpcFailure:
        broken = "error"
        raise
    except grpc.aio.AioRpcError as error:
        broken = "error"
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            dispatcher.backend.suspect([flight.variant.name])
        raise RpcFailure(error.code(), error.details()) from None
    finally:
        call.cancel()
        dispatcher.finish(flight, broken)
    if flight.unasked is not None:
        flight.unasked.apply(response.infer_response)
    response.infer_response.MergeFromString(flight.change)
    return bytes(response.infer_response.SerializeToString())


async def _one_response(call: Any, raw: bytes) -> Any:
    """Send a request and take the response that has outputs; raises AioRpcError, RpcFailure."""
    await _write(call.write(raw))
    await _write(call.done_writing())
    answer = None
    while (raw := await call.read()) is not grpc.aio.EOF:
        response = parse_stream_response(raw)
        if response.error_message:
            raise _triton_failure(response)
        if response.infer_response.outputs:
            answer = response
    await _raise_for_status(call)
    if answer is None:
        raise RpcFailure(grpc.StatusCode.INTERNAL, "the variant ended without an answer")
    return answer
