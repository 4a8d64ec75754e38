"""Responses on their way to clients that may take nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from trt_mtp.controller.gateway.byte_room import ByteRoom

CLIENT_STALL_S = 60.0  # for a client to take an event, or a whole answer
LEAST_BYTES_PER_S = 1024.0  # that it takes of the rest of a stream, beyond that time
# of a stream that may wait for its client, who holds no place at a variant meanwhile: what is
# shorter is read whole from there, as over gRPC (outbox.py)
MAX_WAITING_BYTES = 1024 * 1024


async def send_whole(request: web.Request, response: web.Response, room: ByteRoom) -> web.Response:
    """`response`, once its client took it; until then it counts in its caller's room.

    Raises ConnectionResetError as `taken`.
    """
    body = response.body
    with room.hold_now(len(body) if isinstance(body, bytes) else 0):
        async with taken(request):
            await response.prepare(request)
            await response.write_eof()
    return response


def let_wait(request: web.Request, num_bytes: int | None) -> None:
    """From now on a write ends at once while no more than so many bytes wait; None: as usual."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(num_bytes)


async def send_rest(
    request: web.Request, response: web.StreamResponse, last: bytes, room: ByteRoom
) -> None:
    """End a stream with `last`: what waits counts in its caller's room until the client took it.

    Raises ConnectionResetError as `taken`.
    """
    transport = request.transport
    num_bytes = len(last) + (0 if transport is None else transport.get_write_buffer_size())
    let_wait(request, 0)
    with room.hold_now(num_bytes):
        async with taken(request, CLIENT_STALL_S + num_bytes / LEAST_BYTES_PER_S):
            await response.write_eof(last)
    let_wait(request, None)


@asynccontextmanager
async def taken(request: web.Request, stall_s: float | None = None) -> AsyncIterator[None]:
    """Ends the connection if the client doesn't take in time what is written inside.

    Raises ConnectionResetError then.
    """
    try:
        async with asyncio.timeout(CLIENT_STALL_S if stall_s is None else stall_s):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client took nothing for too long") from None
