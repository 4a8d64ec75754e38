"""grpc.health.v1: what probes of Kubernetes, Envoy and load balancers ask a gRPC port.

github.com/grpc/grpc-proto, grpc/health/v1/health.proto. Its two messages have one field each, and
are read and written here, so that the gateway needs no further package.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Caller, Owner
from trt_mtp.controller.gateway.access.stream_counts import StreamCounts
from trt_mtp.controller.gateway.failure import RpcError
from trt_mtp.controller.gateway.grpc_unary import only_message, stranger, with_status, write
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import SERVICE, fields

HEALTH_SERVICE = "grpc.health.v1.Health"
CHECK, WATCH = "Check", "Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"  # status = 1
_SERVICE_NAME = 0x0A  # tag of HealthCheckRequest.service


class HealthService:
    """Says whether the gateway, the public model or one of its variants can take requests."""

    def __init__(
        self,
        pool: Pool,
        known: Callable[[Any], Caller | None],
        watches: StreamCounts,
        calls: StreamCounts,
    ) -> None:
        """`known` is who makes a call; the messages of others are not read.

        `watches` and `calls` are how many each has.
        """
        self._pool, self._known = pool, known
        self._watches, self._calls = watches, calls
        self._is_draining = False
        self._seen: object = None  # at the last look
        self._changed = asyncio.Event()  # one for each change

    def handler(self) -> Any:
        """The service, for a gRPC server; streams, as gRPC reads others' messages by itself."""
        handlers = {CHECK: self._answer, WATCH: self._tell}
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                name: grpc.stream_stream_rpc_method_handler(with_status(handle))
                for name, handle in handlers.items()
            },
        )

    def look(self) -> None:
        """Tell who watches of a change; call it now and then."""
        variants = self._pool.variants.values()
        seen = self._pool.is_ready, [(each.model_name, each.is_ready) for each in variants]
        if seen != self._seen:
            self._seen = seen
            self._wake()

    def drain(self) -> None:
        """Not serving from now on; who watches is told so, and their calls end."""
        self._is_draining = True
        self._wake()

    def check(self, name: str) -> bytes:
        """The status now; raises RpcError for a name that is none."""
        status = self._status(name)
        if status == SERVICE_UNKNOWN:
            raise RpcError(
                grpc.StatusCode.NOT_FOUND,
                f"{name[:MAX_NAME_CHARS]!r} is neither a model here nor {SERVICE.full_name}",
            )
        return status

    async def watch(self, name: str) -> AsyncIterator[bytes]:
        """The status now, and again whenever it changes, until the gateway stops."""
        told = b""
        while not self._is_draining:
            changed, status = self._changed, self._status(name)
            if status != told:
                yield status
                told = status
            await changed.wait()
        yield NOT_SERVING

    async def _answer(self, _: object, context: Any) -> None:
        with self._calls.one(self._owner(context)):
            await write(context, self.check(await self._name(context)))

    async def _tell(self, _: object, context: Any) -> None:
        with self._watches.one(self._owner(context)):
            async for status in self.watch(await self._name(context)):
                await write(context, status)

    def _owner(self, context: Any) -> Owner:
        caller = self._known(context)
        return caller.owner if caller else stranger(context)

    async def _name(self, context: Any) -> str:
        """Whose status is asked for; who isn't known asks for the gateway's."""
        caller = self._known(context)
        if caller is None:
            return ""
        async with only_message(context, caller.room) as raw:
            return service_name(raw)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> bytes:
        """The status of a model by its name on Triton, or of all for no name or KServe's own."""
        if self._is_draining:
            return NOT_SERVING
        if name in ("", SERVICE.full_name, HEALTH_SERVICE, self._pool.public_name):
            return SERVING if self._pool.is_ready else NOT_SERVING
        ready = [v.is_ready for v in self._pool.variants.values() if v.model_name == name]
        if not ready:
            return SERVICE_UNKNOWN
        return SERVING if any(ready) else NOT_SERVING


def service_name(raw: bytes) -> str:
    """HealthCheckRequest.service, empty where it isn't there.

    Raises InputError for bytes that are no message.

    >>> service_name(b"\\n\\x02ab")
    'ab'
    """
    name = b""
    for tag, _, start, end in fields(raw, 0):
        if tag == _SERVICE_NAME:
            name = raw[start:end]
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise InputError("service is not UTF-8 text") from None
