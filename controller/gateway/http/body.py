"""The body of a request, unpacked only for callers that are known, and never beyond the limit."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.errors import InputError

BODY_TIMEOUT_S = 60.0  # for a client to send its request
# of zlib: gzip's frame, and either form that clients call deflate
WINDOW_BITS = {
    "gzip": (16 + zlib.MAX_WBITS,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}


@asynccontextmanager
async def received(request: web.Request, room: ByteRoom) -> AsyncIterator[bytes]:
    """The body, in its caller's room until it is dealt with; raises as `read_body`."""
    limit, size = request.client_max_size, request.content_length
    is_plain = "Content-Encoding" not in request.headers
    async with room.hold(size if size is not None and is_plain and size < limit else limit) as hold:
        body = await read_body(request)
        hold.resize(len(body))
        yield body


async def read_body(request: web.Request, limit: int | None = None) -> bytes:
    """The body; call it for a caller whose token is known.

    Raises InputError for one that isn't sent in time or can't be unpacked,
    web.HTTPUnsupportedMediaType for a coding that is not taken, and
    web.HTTPRequestEntityTooLarge for one that is longer, unpacked, than `limit` bytes, which are
    by default what the application takes.
    """
    limit = request.client_max_size if limit is None else limit
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity" and coding not in WINDOW_BITS:
        raise web.HTTPUnsupportedMediaType(
            reason=f"Content-Encoding {coding[:40]!r} is not taken: send gzip, deflate or neither"
        )
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(request, limit)
    except TimeoutError:
        raise InputError(f"the request's body was not sent within {BODY_TIMEOUT_S:g} s") from None
    if coding == "identity":
        return raw
    body = await asyncio.to_thread(unpacked, raw, coding, limit)
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(body))
    return body


async def _read(request: web.Request, limit: int) -> bytes:
    """The body as it was sent; put together in a thread, where it holds up nobody."""
    chunks, size = list[bytes](), 0
    async for chunk in request.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit, size)
    if len(chunks) <= 1:
        return b"".join(chunks)
    return await asyncio.to_thread(b"".join, chunks)


def unpacked(raw: bytes, coding: str, limit: int) -> bytes:
    """`raw` unpacked, cut after `limit` bytes and one more; raises InputError for what is broken.

    >>> unpacked(zlib.compress(b"abc" * 10), "deflate", 4)
    b'abcab'
    """
    for window_bits in WINDOW_BITS[coding]:
        unpacking = zlib.decompressobj(window_bits)
        try:
            body = unpacking.decompress(raw, limit + 1)
        except zlib.error:
            continue
        if len(body) > limit or unpacking.eof:
            return body
    raise InputError(f"the request's body is not {coding}, or not all of it")
