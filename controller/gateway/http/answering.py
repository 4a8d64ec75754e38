"""Requests that are being answered over HTTP: by which tasks, and for whom."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from trt_mtp.controller.gateway.access.authenticator import Authenticator, Caller
from trt_mtp.controller.gateway.http.long_bodies import LongBodies
from trt_mtp.controller.gateway.servers.upstream import Metadata
from trt_mtp.controller.gateway.trace_context import trace_context


class Answering:
    """Ends the answers to callers whose token was taken back."""

    def __init__(self) -> None:
        self.bodies, self.answers = LongBodies(), LongBodies()
        self._callers: dict[asyncio.Task[Any], Caller] = {}

    @contextmanager
    def noted(self, caller: Caller) -> Iterator[None]:
        """While this task answers a request of `caller`."""
        task = asyncio.current_task()
        assert task is not None
        self._callers[task] = caller
        try:
            yield
        finally:
            del self._callers[task]

    def look(self) -> None:
        """End the answers to callers that are no longer known; call it now and then."""
        for task, caller in self._callers.items():
            if not caller.is_known:
                task.cancel()


def caller_of(authenticator: Authenticator, request: web.Request) -> Caller:
    """Who makes a request; raises UnauthenticatedError."""
    authorization = request.headers.getall("Authorization", ())
    return authenticator.caller(authorization, request.remote or "")


def forwarded_headers(request: web.Request) -> Metadata:
    """The headers that go on to Triton."""
    return trace_context((name.lower(), value) for name, value in request.headers.items())
