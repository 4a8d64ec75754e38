"""The picker: Envoy asks it which server a request goes to, and sends it there itself.

envoy.service.ext_proc.v3.ExternalProcessor, one stream for each request of Envoy's: the headers and
the body come, the server's address goes back in a header, then the answer comes and goes back as
its client wants it. What the picker doesn't place at once, Envoy sends to the gateways.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Authenticator
from trt_mtp.controller.gateway.access.client_address import grpc_host
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.ext_proc.doors import (
    STREAM_PATH,
    Door,
    door_of,
    failed_status,
    framed,
    messages_in,
)
from trt_mtp.controller.gateway.ext_proc.messages import (
    PROCESS,
    SERVICE,
    ProcessingRequest,
    ProcessingResponse,
    headers_of,
    set_headers,
)
from trt_mtp.controller.gateway.failure import (
    NotReadyError,
    VariantFailedError,
    status_of,
)
from trt_mtp.controller.gateway.http.long_bodies import LongBodies
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.proxy import Proxy, only_answer
from trt_mtp.controller.gateway.router import Router
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost
from trt_mtp.controller.gateway.trace_context import trace_context
from trt_mtp.controller.request import is_streaming
from trt_mtp.errors import TrtMtpError

# the header is that of the Gateway API Inference Extension's endpoint picker protocol
DESTINATION = "x-gateway-destination-endpoint"
ENVOYS = ("host", "x-forwarded-proto")  # headers that are its own, beside those with a colon
SENT = ((":path", STREAM_PATH), ("content-type", "application/grpc"), ("te", "trailers"))


class EnvoyLeft(asyncio.CancelledError):
    """Envoy says no more of a request: its client is gone, or it has an answer of its own."""


class EnvoyStream:
    """A stream of Envoy's: what it says of one request, and what it is answered."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self, kind: str) -> Any:
        """The next message, which has to be of this kind; raises EnvoyLeft for any other."""
        raw = await self._context.read()
        message = ProcessingRequest() if raw is grpc.aio.EOF else ProcessingRequest.FromString(raw)
        if not message.HasField(kind):
            raise EnvoyLeft
        return getattr(message, kind)

    async def write(self, response: Any) -> None:
        """Answer the message that was read last; raises EnvoyLeft."""
        try:
            await self._context.write(response.SerializeToString())
        except grpc.aio.InternalError:
            raise EnvoyLeft from None

    async def go_on(self, kind: str) -> None:
        """Leave what was read as it is."""
        response = ProcessingResponse()
        getattr(response, kind).SetInParent()
        await self.write(response)


class Picker:
    """Places the requests that can be placed at once and have a single answer."""

    def __init__(
        self, proxy: Proxy, router: Router, authenticator: Authenticator, max_message_bytes: int
    ) -> None:
        self._proxy, self._router, self._authenticator = proxy, router, authenticator
        self._max_bytes = max_message_bytes
        self._bodies = LongBodies()

    def handler(self) -> Any:
        """The service, for a gRPC server."""
        method = grpc.stream_stream_rpc_method_handler(self._process)
        return grpc.method_handlers_generic_handler(SERVICE, {PROCESS: method})

    async def _process(self, _: object, context: Any) -> None:
        """One request of Envoy's; where this returns early, Envoy goes on without the picker."""
        envoy = EnvoyStream(context)
        with contextlib.suppress(EnvoyLeft):
            head = await envoy.read("request_headers")
            headers = headers_of(head)
            door = door_of(headers, self._proxy.pool.public_name)
            await envoy.go_on("request_headers")
            if door is not None and not head.end_of_stream:
                body = await envoy.read("request_body")
                removed = _not_for_triton(headers)
                await self._answer(envoy, door, body, grpc_host(context.peer()), removed)

    async def _answer(
        self, envoy: EnvoyStream, door: Door, body: Any, host: str, removed: Sequence[str]
    ) -> None:
        try:
            call = await self._opened(door, body, host)
            lease = None if call is None else self._placed(call)
            if lease is None:
                await envoy.go_on("request_body")
                return
            with self._proxy.metrics.counted(lease.call):
                answer = await self._answered(envoy, lease, removed)
        except TrtMtpError as error:
            await envoy.write(_refusal(door, error))
        else:
            await envoy.write(_reply(door, answer))

    async def _opened(self, door: Door, body: Any, host: str) -> InferenceCall | None:
        """The call that a body means; None for one that is for a gateway. Raises InputError."""
        if not body.end_of_stream or len(body.body) > self._max_bytes:
            return None
        caller = self._authenticator.caller((), host)
        request = await door.read(
            body.body, lambda raw, read: self._bodies.read(raw, caller.room, read)
        )
        if request is None or request.message.model_name != self._proxy.pool.public_name:
            return None
        if is_streaming(request):
            return None
        return self._proxy.open(request, caller)

    def _placed(self, call: InferenceCall) -> Lease | None:
        """A place that is free now; None while there is none. Raises TrtMtpError if none can be."""
        try:
            return self._router.place(call)
        except NotReadyError:
            return None

    async def _answered(self, envoy: EnvoyStream, lease: Lease, removed: Sequence[str]) -> Any:
        """The pb.ModelInferResponse to a request that Envoy sends; raises TrtMtpError."""
        try:
            with ExitStack() as stack:
                stack.push(lease)  # to be closed: not begun, as it is Envoy who sends
                await envoy.write(_picked(lease, removed))
                head = headers_of(await envoy.read("response_headers"))
                if (status := failed_status(head)) is not None:
                    is_late = status is grpc.StatusCode.DEADLINE_EXCEEDED
                    lost = UpstreamLost(f"Envoy got {status.name}", status, is_hung=is_late)
                    raise lease.failed(lost)
                await envoy.go_on("response_headers")
                body = await envoy.read("response_body")
                return only_answer(lease.read_whole(messages_in(body.body)))
        except VariantFailedError as failure:
            raise failure.final() from None


def _not_for_triton(headers: Mapping[str, str]) -> Sequence[str]:
    """The names of a client's headers that go no further: all but its trace.

    Triton's gRPC ends calls for some (deadlines, sizes, encodings), as if the variant had failed.
    """
    kept = {*ENVOYS, *(name for name, _ in (*SENT, *trace_context(headers.items())))}
    return [name for name in headers if name not in kept and not name.startswith(":")]


def _picked(lease: Lease, removed: Sequence[str]) -> Any:
    """What sends a request to its variant."""
    response = ProcessingResponse()
    common = response.request_body.response
    common.clear_route_cache = True
    common.body_mutation.body = framed(lease.message)
    set_headers(common.header_mutation, [*SENT, (DESTINATION, lease.replica.backend.target)])
    common.header_mutation.remove_headers.extend(removed)
    return response


def _reply(door: Door, answer: Any) -> Any:
    """What turns Triton's answer into the client's."""
    response = ProcessingResponse()
    common = response.response_body.response
    common.body_mutation.body = door.answer(answer, common.header_mutation)
    return response


def _refusal(door: Door, error: TrtMtpError) -> Any:
    """What the client is told in place of an answer."""
    response = ProcessingResponse()
    door.refuse(status_of(error), response.immediate_response)
    return response
