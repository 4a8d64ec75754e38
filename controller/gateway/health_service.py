"""grpc.health.v1: what probes of Kubernetes, Envoy and load balancers ask a gRPC port.

github.com/grpc/grpc-proto, grpc/health/v1/health.proto. Its two messages have one field each, and
are read and written here, so that the gateway needs no further package.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from trt_mtp.controller.gateway.failure import RpcError
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import SERVICE, fields

HEALTH_SERVICE = "grpc.health.v1.Health"
CHECK, WATCH = "Check", "Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"  # status = 1
LOOK_S = 0.25  # how soon who watches is told of a change
_SERVICE_NAME = 0x0A  # tag of HealthCheckRequest.service


class HealthService:
    """Says whether the gateway, the public model or one of its variants can take requests."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._draining = asyncio.Event()

    def handler(self) -> Any:
        """The service, for a gRPC server."""
        handlers = {
            CHECK: grpc.unary_unary_rpc_method_handler(self.check),
            WATCH: grpc.unary_stream_rpc_method_handler(self.watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def drain(self) -> None:
        """Not serving from now on; who watches is told so, and their calls end."""
        self._draining.set()

    async def check(self, raw: bytes, context: Any) -> bytes:
        """The status now; NOT_FOUND for a name that is none."""
        try:
            name = service_name(raw)
            status = self._status(name)
            if status == SERVICE_UNKNOWN:
                raise RpcError(
                    grpc.StatusCode.NOT_FOUND,
                    f"{name[:MAX_NAME_CHARS]!r} is neither a model here nor {SERVICE.full_name}",
                )
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RpcError as error:
            await context.abort(error.code, error.details)
        return status

    async def watch(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        """The status now, and again whenever it changes, until the gateway stops."""
        try:
            name = service_name(raw)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        told = b""
        while not self._draining.is_set():
            status = self._status(name)
            if status != told:
                yield status
                told = status
            try:
                await asyncio.wait_for(self._draining.wait(), LOOK_S)
            except TimeoutError:
                continue
        yield NOT_SERVING

    def _status(self, name: str) -> bytes:
        """The status of a model by its name on Triton, or of all for no name or KServe's own."""
        if self._draining.is_set():
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
