"""The gateway's gRPC port: KServe v2, bytes in and bytes out."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import (
    MAX_METADATA_BYTES,
    Authenticator,
    Caller,
    authorization_of,
)
from trt_mtp.controller.gateway.access.client_address import grpc_host
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.access.stream_counts import CALLS, StreamCounts
from trt_mtp.controller.gateway.access.tls import server_credentials
from trt_mtp.controller.gateway.call import check_may_pass, deadline_at, forwarded_metadata
from trt_mtp.controller.gateway.failure import LimitError, RpcError, end_call, status_of
from trt_mtp.controller.gateway.grpc_interceptor import Gatekeeper
from trt_mtp.controller.gateway.grpc_stream import GrpcStream
from trt_mtp.controller.gateway.grpc_unary import Unary, for_callers, for_everybody
from trt_mtp.controller.gateway.health_service import CHECK, WATCH, HealthService
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.public_model import PublicModel
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.hosts import host_and_port
from trt_mtp.serve.kserve import SERVICE, read_request

MAX_PENDING_CALLS = 10_000
PING_INTERVAL_MS = 1_000  # clients of Go and Java send no keepalive more often than every 10 s

MANAGEMENT = frozenset(
    {
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    }
)

HEALTH = frozenset({"ServerLive", "ServerReady", CHECK, WATCH})


class GrpcServer:
    """Serves the public model. Make, start and stop it inside one event loop."""

    def __init__(
        self,
        proxy: Proxy,
        authenticator: Authenticator,
        access: AccessConfig,
        *,
        max_message_bytes: int,
        is_port_shared: bool,
    ) -> None:
        """`is_port_shared` lets other processes have the port, too (SO_REUSEPORT)."""
        self._proxy, self._authenticator, self._access = proxy, authenticator, access
        self._streams: set[GrpcStream] = set()
        self._is_draining = False
        self._limits = limits = access.connections
        self._counts = StreamCounts(limits.max_caller_streams)
        self._calls = StreamCounts(limits.max_streams, "calls", CALLS)  # all others
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_own)
        self._server = grpc.aio.server(
            interceptors=(Gatekeeper(authenticator, HEALTH),) if access.tokens else (),
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                # gRPC drops some calls beyond 1,000 that came in one moment and aren't begun yet
                ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
                ("grpc.so_reuseport", int(is_port_shared)),
                ("grpc.max_allowed_incoming_connections", limits.max_connections),
                ("grpc.max_concurrent_streams", limits.max_streams),
                # clients that look whether the connection lives, while an answer waits or between
                # requests; by default gRPC ends their connection with "too many pings"
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
                ("grpc.max_connection_idle_ms", int(limits.idle_s * 1e3)),
                ("grpc.server_handshake_timeout_ms", int(limits.handshake_s * 1e3)),
            ],
        )
        handler = grpc.method_handlers_generic_handler(SERVICE.full_name, self._handlers())
        self._health = HealthService(proxy.pool, self._known, self._counts, self._calls)
        self._server.add_generic_rpc_handlers((handler, self._health.handler()))

    def bind(self, host: str, port: int) -> int:
        """Take the port, or a free one for 0; the port.

        Raises InputError if it is in use or the TLS files can't be used.
        """
        wanted, tls = host_and_port(host, port), self._access.tls
        try:
            if tls is None:
                return int(self._server.add_insecure_port(wanted))
            return int(self._server.add_secure_port(wanted, server_credentials(tls)))
        except RuntimeError:
            raise InputError(
                f"can't listen on {wanted}: the port is in use or the address is not this "
                f"machine's; choose others with --host and --port (0 takes a free port)"
            ) from None

    async def start(self) -> None:
        """Serve clients."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more requests and finish those in flight within the grace period."""
        self._is_draining = True
        self._health.drain()
        for stream in self._streams:
            stream.drain()
        await self._server.stop(grace_s)

    def look(self) -> None:
        """End the calls of clients that are stuck or no longer known; call it now and then.

        Who watches the health is told of a change.
        """
        for stream in self._streams:
            stream.look()
        self._health.look()

    def _handlers(self) -> dict[str, Any]:
        """One handler for each RPC of the service, bytes in and bytes out.

        Health is for everybody, all else for callers that are known.
        """
        answers = PublicModel(self._proxy.pool).answers()
        handlers = {}
        for method in SERVICE.methods:
            if method.name == "ModelStreamInfer":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._stream)
                continue
            if method.name in MANAGEMENT:
                unary: Unary = functools.partial(_refuse, method.name)
            elif method.name == "ModelInfer":
                unary = self._infer
            elif method.name in answers:
                unary = functools.partial(self._about_model, method.name, answers[method.name])
            else:
                unary = functools.partial(self._pass, method.name)
            if method.name in HEALTH:
                answering = for_everybody(unary, self._calls)
            else:
                answering = for_callers(unary, self._caller, self._calls)
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(answering)
        return handlers

    async def _stream(self, _: object, context: Any) -> None:
        try:
            await self._carry(context)
        except LimitError as error:
            await end_call(context, status_of(error))
        except RpcError as error:
            await end_call(context, error)

    async def _carry(self, context: Any) -> None:
        caller = self._caller(context)
        with self._counts.one(caller.owner):
            stream = GrpcStream(self._proxy, caller, context, self._limits.idle_s)
            self._streams.add(stream)
            if self._is_draining:
                stream.drain()
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

    def _known(self, context: Any) -> Caller | None:
        """Who makes a call, or None for somebody who isn't known."""
        try:
            return self._caller(context)
        except RpcError:
            return None

    def _caller(self, context: Any) -> Caller:
        """Who makes a call; raises RpcError when its token is wrong."""
        try:
            authorization = authorization_of(context.invocation_metadata())
            return self._authenticator.caller(authorization, grpc_host(context.peer()))
        except TrtMtpError as error:
            raise status_of(error) from None

    async def _infer(self, raw: bytes, context: Any) -> bytes:
        request = read_request(raw)
        if request.message.model_name == self._proxy.pool.public_name:
            until = deadline_at(request, context.time_remaining())
            caller, metadata = self._caller(context), forwarded_metadata(context)
            response = await self._proxy.answer_once(request, caller, metadata, until)
            return bytes(response.SerializeToString())
        caller = self._caller(context)
        check_may_pass(caller, self._proxy.pool, request.message)
        with caller.passing_quota():
            return await self._pass("ModelInfer", raw, context)

    async def _about_model(
        self,
        method: str,
        answer: Callable[[bytes, float | None], Awaitable[bytes | None]],
        raw: bytes,
        context: Any,
    ) -> bytes:
        own = await answer(raw, context.time_remaining())
        return own if own is not None else await self._pass(method, raw, context)

    async def _pass(self, method: str, raw: bytes, context: Any) -> bytes:
        metadata = forwarded_metadata(context)
        return await self._proxy.pool.call(method, raw, context.time_remaining(), metadata)


def _is_own(record: logging.LogRecord) -> bool:
    """Leave out what clients cause: texts that aren't UTF-8, tokens among them, and leaving.

    Anybody could fill the disk with it.
    """
    return record.exc_info is None or not isinstance(
        record.exc_info[1], UnicodeDecodeError | grpc.aio.InternalError
    )


async def _refuse(method: str, raw: bytes, context: Any) -> bytes:
    raise RpcError(
        grpc.StatusCode.PERMISSION_DENIED,
        f"{method} is a management call, which the gateway takes from nobody: make it on Triton's "
        f"own gRPC port, with its admin key",
    )
