"""Responses on their way to clients that may take nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from trt_mtp.controller.gateway.byte_room import ByteRoom

CLIENT_STALL_S = 60.0  # for a client to take an event, or a whole answer


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


@asynccontextmanager
async def taken(request: web.Request) -> AsyncIterator[None]:
    """Ends the connection if the client doesn't take in time what is written inside.

    Raises ConnectionResetError then.
    """
    try:
        async with asyncio.timeout(CLIENT_STALL_S):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client took nothing for too long") from None
