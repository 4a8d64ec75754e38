"""Unary calls of the gateway's gRPC port, handled as streams of one message each way.

gRPC reads the message of a unary call before its handler runs, however many there are, and keeps
an answer until the client takes it. A stream's handler reads and writes itself: within its caller's
room, and within a time.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Caller, Owner
from trt_mtp.controller.gateway.access.client_address import client_network, grpc_host
from trt_mtp.controller.gateway.access.stream_counts import StreamCounts
from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.failure import ClientStalledError, RpcError, end_call, status_of
from trt_mtp.controller.gateway.grpc_stream import CLIENT_STALL_S
from trt_mtp.errors import InputError, TrtMtpError

READ_BYTES = 4 * 1024 * 1024  # set aside for a message that is still being sent
READ_TIMEOUT_S = 60.0  # for a client to send it

Unary = Callable[[bytes, Any], Awaitable[bytes]]
Stream = Callable[[object, Any], Awaitable[None]]


def for_callers(unary: Unary, caller_of: Callable[[Any], Caller], counts: StreamCounts) -> Stream:
    """A stream's handler that answers its one message, for callers that are known.

    `counts` is how many such calls each has.
    """

    async def handle(_: object, context: Any) -> None:
        caller = caller_of(context)
        with counts.one(caller.owner):
            async with only_message(context, caller.room) as raw:
                answer = await unary(raw, context)
            with caller.room.hold_now(len(answer)):
                await write(context, answer)

    return with_status(handle)


def for_everybody(unary: Unary, counts: StreamCounts) -> Stream:
    """The same for a request without contents; whatever was sent is not read."""

    async def handle(_: object, context: Any) -> None:
        with counts.one(stranger(context)):
            await write(context, await unary(b"", context))

    return with_status(handle)


def stranger(context: Any) -> Owner:
    """Whose call it is of somebody who isn't known: whoever is at that address."""
    return False, client_network(grpc_host(context.peer()))


@asynccontextmanager
async def only_message(context: Any, room: ByteRoom) -> AsyncIterator[bytes]:
    """The one message of a call, in its caller's room until it is dealt with."""
    async with room.hold(READ_BYTES) as hold:
        raw = await _read(context)
        hold.resize(len(raw))
        yield raw


async def _read(context: Any) -> bytes:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            raw = await context.read()
    except TimeoutError:
        raise InputError(f"the message was not sent within {READ_TIMEOUT_S:g} s") from None
    if raw is grpc.aio.EOF:
        raise InputError("the call has no message")
    return bytes(raw)


async def write(context: Any, answer: bytes) -> None:
    """Send an answer; raises when the client doesn't take it."""
    try:
        async with asyncio.timeout(CLIENT_STALL_S):
            await context.write(answer)
    except TimeoutError:
        raise ClientStalledError(f"the client took no answer for {CLIENT_STALL_S:g} s") from None
    except grpc.aio.InternalError:  # the client is gone
        raise RpcError(grpc.StatusCode.CANCELLED, "the client is gone") from None


def with_status(handler: Stream) -> Stream:
    """`handler`, with its failures and Triton's as the call's status."""

    async def handle(messages: object, context: Any) -> None:
        try:
            await handler(messages, context)
        except RpcError as error:
            await end_call(context, error)
        except TrtMtpError as error:
            await end_call(context, status_of(error))
        except grpc.aio.AioRpcError as error:
            await end_call(context, RpcError(error.code(), error.details() or ""))

    return handle
