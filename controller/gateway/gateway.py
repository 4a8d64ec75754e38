"""The gateway: KServe v2 gRPC in front of Triton, where the public model is all its variants."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from trt_mtp.controller.gateway.access import OPEN, AccessConfig
from trt_mtp.controller.gateway.addresses import host_and_port
from trt_mtp.controller.gateway.answering import Answering
from trt_mtp.controller.gateway.dispatch import Dispatcher, RoutingPolicy
from trt_mtp.controller.gateway.failure import RpcFailure, failure
from trt_mtp.controller.gateway.guard import MAX_METADATA_BYTES, Caller, Guard
from trt_mtp.controller.gateway.kserve import SERVICE, read_request
from trt_mtp.controller.gateway.pool import Pool
from trt_mtp.controller.gateway.public_model import PublicModel
from trt_mtp.controller.gateway.relay import Relay, answer_once, deadline_s, forwarded_metadata
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat
from trt_mtp.controller.gateway.stall import WATCH_S, StallLimits
from trt_mtp.controller.gateway.tls import server_credentials
from trt_mtp.errors import InputError, TrtMtpError

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.http_server import HttpServer

log = logging.getLogger(__name__)

ADMIN_HOST = "127.0.0.1"
MAX_PENDING_CALLS = 10_000

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

HEALTH = frozenset({"ServerLive", "ServerReady"})

Unary = Callable[[bytes, Any], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How a gateway is reached and what it stands in front of."""

    triton: str  # HOST:PORT of each Triton's gRPC, commas between; or one dns:NAME:PORT
    model: str = "qwen_mtp"  # the public model
    host: str = "127.0.0.1"
    port: int = 8001  # 0 takes a free one
    http_port: int | None = None  # None: no HTTP; 0 takes a free one
    admin_port: int | None = None  # on 127.0.0.1; None: none; 0 takes a free one
    is_port_shared: bool = False  # with other gateways that say so too (SO_REUSEPORT)
    seat: Seat | None = None  # for one of several workers
    ready_timeout_s: float = 60.0
    grace_s: float = 30.0  # for answers in flight when the gateway stops
    max_message_bytes: int = 64 * 1024 * 1024
    access: AccessConfig = OPEN
    max_waiting: int = 1024  # requests for which every variant is too busy
    stall: StallLimits = field(default_factory=StallLimits)
    patience_s: float = 15.0  # for another variant, when one fails and no other can go on


class Gateway:
    """Make, start and stop it inside one event loop."""

    def __init__(self, config: GatewayConfig, policy: RoutingPolicy) -> None:
        self.config = config
        self.pool = Pool(config.triton, config.model, config.access.triton_tls)
        scoreboard = Scoreboard(config.seat)
        self.dispatcher = Dispatcher(self.pool, policy, scoreboard)
        self.guard = Guard(config.access, scoreboard)
        self.answering = Answering.of(
            self.dispatcher, scoreboard, config.max_waiting, config.stall, config.patience_s
        )
        self.port = 0  # known after start
        self.http_port: int | None = None  # known after start, where there is one
        self.admin_port: int | None = None  # the same
        self.on_drain: Callable[[], None] = lambda: None  # called when the admin port is asked to
        self._http: HttpServer | None = None
        self._admin: HttpServer | None = None
        self._relays: set[Relay] = set()
        self._is_draining = False
        self._watcher: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                # gRPC drops some calls beyond 1,000 that came in one moment and aren't begun yet
                ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
                ("grpc.so_reuseport", int(config.is_port_shared)),
            ]
        )
        handler = grpc.method_handlers_generic_handler(SERVICE.full_name, self._handlers())
        self._server.add_generic_rpc_handlers((handler,))

    @property
    def address(self) -> str:
        """HOST:PORT that clients connect to."""
        return host_and_port(self.config.host, self.port)

    @property
    def http_address(self) -> str | None:
        """HOST:PORT of HTTP, where it is served."""
        return None if self.http_port is None else host_and_port(self.config.host, self.http_port)

    async def start(self) -> None:
        """Bind, wait for a ready variant, and serve.

        Raises InputError for a port that is in use or wrong TLS files, TrtMtpError when no variant
        gets ready.
        """
        self.port = self._bind(host_and_port(self.config.host, self.config.port))
        await self.pool.wait_ready(self.config.ready_timeout_s)
        await self._start_http()
        await self._server.start()
        self.pool.watch()
        self._watcher = asyncio.create_task(self._watch())

    def _bind(self, wanted: str) -> int:
        tls = self.config.access.tls
        try:
            if tls is None:
                return int(self._server.add_insecure_port(wanted))
            return int(self._server.add_secure_port(wanted, server_credentials(tls)))
        except RuntimeError:
            raise InputError(
                f"can't listen on {wanted}: the port is in use or the address is not this "
                f"machine's; choose others with --host and --port (0 takes a free port)"
            ) from None

    async def _start_http(self) -> None:
        config = self.config
        if config.http_port is None and config.admin_port is None:
            return
        from trt_mtp.controller.gateway.admin import admin_app  # aiohttp takes its time
        from trt_mtp.controller.gateway.http_server import HttpServer
        from trt_mtp.controller.gateway.public_http import PublicHttp

        if config.http_port is not None:
            app = PublicHttp(self.answering, self.guard).app(config.max_message_bytes)
            self._http = HttpServer(app, config.grace_s, config.access.tls)
            self.http_port = await self._http.start(
                config.host, config.http_port, "--http-port", is_shared=config.is_port_shared
            )
        if config.admin_port is not None:
            self._admin = HttpServer(admin_app(self), 0.0)
            self.admin_port = await self._admin.start(ADMIN_HOST, config.admin_port, "--admin-port")

    async def stop(self) -> None:
        """Take no more requests, finish those in flight within the grace period, and close."""
        self._is_draining = True
        for relay in self._relays:
            relay.drain()
        stopping = [self._server.stop(self.config.grace_s)]
        if self._http is not None:
            stopping.append(self._http.stop())
        await asyncio.gather(*stopping)
        if self._admin is not None:
            await self._admin.stop()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self.pool.close()

    def describe(self) -> dict[str, Any]:
        """What `trt-mtp gateway --json` prints when it is ready."""
        return {
            "schema_version": 1,
            "gateway": self.address,
            "http": self.http_address,
            "admin": None if self.admin_port is None else f"{ADMIN_HOST}:{self.admin_port}",
            "model": self.config.model,
            "triton": self.config.triton,
            "variants": [
                {"name": variant.key, "draft_length": variant.draft_length}
                for variant in self.pool.variants.values()
            ],
        }

    def statistics(self) -> dict[str, Any]:
        """Counters by task and by variant, as a JSON object."""
        waiting = self.answering.admission.num_waiting
        return {**self.dispatcher.statistics(), "num_waiting": waiting}

    def _handlers(self) -> dict[str, Any]:
        """One handler for each RPC of the service, bytes in and bytes out.

        Health is for everybody, all else for callers that the guard knows.
        """
        answers = PublicModel(self.pool).answers()
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
            if method.name not in HEALTH:
                unary = self._for_callers(unary)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(_with_status(unary))
        return handlers

    def _for_callers(self, unary: Unary) -> Unary:
        async def handle(raw: bytes, context: Any) -> bytes:
            self._caller(context)
            return await unary(raw, context)

        return handle

    async def _stream(self, _: object, context: Any) -> None:
        try:
            relay = Relay(self.answering, self._caller(context), context)
            self._relays.add(relay)
            if self._is_draining:
                relay.drain()
            try:
                await relay.run()
            finally:
                self._relays.discard(relay)
        except RpcFailure as error:
            await context.abort(error.code, error.details)

    def _caller(self, context: Any) -> Caller:
        """Who makes a call; raises RpcFailure when its token is wrong."""
        metadata = dict(context.invocation_metadata() or ())
        try:
            return self.guard.caller(str(metadata.get("authorization", "")))
        except TrtMtpError as error:
            raise failure(error) from None

    async def _infer(self, raw: bytes, context: Any) -> bytes:
        request = read_request(raw)
        if request.message.model_name == self.config.model:
            limit_s = deadline_s(request, context.time_remaining())
            metadata = forwarded_metadata(context)
            response = await answer_once(
                self.answering, request, self._caller(context), metadata, limit_s
            )
            return bytes(response.SerializeToString())
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
        return await self.pool.call(method, raw, context.time_remaining(), metadata)

    async def _watch(self) -> None:
        """What only time brings: answers that are overdue, variants that can take some again."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.answering.watch.look()
            self.answering.admission.serve_waiting()


def _with_status(unary: Unary) -> Unary:
    """`unary`, with its failures and Triton's as the call's status."""

    async def handle(raw: bytes, context: Any) -> bytes:
        try:
            return await unary(raw, context)
        except RpcFailure as error:
            await context.abort(error.code, error.details)
        except TrtMtpError as error:
            found = failure(error)
            await context.abort(found.code, found.details)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())
        raise AssertionError("abort returned")

    return handle


async def _refuse(method: str, raw: bytes, context: Any) -> bytes:
    raise RpcFailure(
        grpc.StatusCode.PERMISSION_DENIED,
        f"{method} is a management call, which the gateway takes from nobody: make it on Triton's "
        f"own gRPC port, with its admin key",
    )
