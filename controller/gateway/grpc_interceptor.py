"""Calls are refused before any of their messages is read, unless their token is known."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Authenticator, authorization_of
from trt_mtp.controller.gateway.failure import status_of
from trt_mtp.errors import TrtMtpError

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Gatekeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls in that name a token; calls of `open_methods` are answered to everybody.

    All handlers are streams', which read themselves. For others gRPC reads the message first, up to
    the longest that is taken: memory for somebody who isn't known.
    """

    def __init__(self, authenticator: Authenticator, open_methods: Collection[str]) -> None:
        self._authenticator = authenticator
        self._open_methods = open_methods

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a call, or one that refuses it."""
        handler = await continuation(details)
        if handler is None:
            return None  # no such method, which gRPC says without reading anything
        try:
            self._authenticator.caller(authorization_of(details.invocation_metadata), "")
        except TrtMtpError as error:
            if details.method.rpartition("/")[2] not in self._open_methods:
                return grpc.stream_stream_rpc_method_handler(_refusing(error))
        return handler


def _refusing(error: TrtMtpError) -> Any:
    """A handler that ends every call with the error's status."""
    refused = status_of(error)

    async def handle(_: object, context: Any) -> None:
        await context.abort(refused.code, refused.details)

    return handle
