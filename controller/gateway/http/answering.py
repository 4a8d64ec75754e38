"""Requests that are being answered over HTTP: by which tasks, and for whom."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from trt_mtp.controller.gateway.access.authenticator import Authenticator, Caller
from trt_mtp.controller.gateway.http.generate_json import MAX_SHORT_BODY
from trt_mtp.controller.gateway.servers.upstream import Metadata
from trt_mtp.controller.gateway.trace_context import trace_context

T = TypeVar("T")


class Answering:
    """Ends the answers to callers whose token was taken back."""

    def __init__(self) -> None:
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


async def read_apart(body: bytes, read: Callable[[bytes], T]) -> T:
    """`read` of a body, as `apart` has it done."""
    return await apart(len(body), partial(read, body))


async def apart(num_bytes: int, work: Callable[[], T]) -> T:
    """Work on so many bytes: on many in a thread, so that it holds up nobody else."""
    return work() if num_bytes <= MAX_SHORT_BODY else await asyncio.to_thread(work)


def forwarded_headers(request: web.Request) -> Metadata:
    """The headers that go on to Triton."""
    return trace_context((name.lower(), value) for name, value in request.headers.items())
