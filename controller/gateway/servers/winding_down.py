"""Answers that nobody waits for any more: their variants are told to stop, the rest is read.

Cancelling the stream would be simpler, and makes Triton 2.51 abort at times (double free in
grpc_byte_buffer_destroy, about once in some thousand cancellations; server issues 7368 and 8034,
pull requests 7840 and 8078 are about faults like it). So the variant is asked in band to end the
request (serve/contract.py) and the stream is read to the end of the answer, after which it serves
others. A variant that knows no such request is let finish.
"""

import asyncio
import contextlib
from enum import Enum
from typing import Protocol

from trt_mtp.controller.gateway.servers.upstream import Metadata, Upstream, UpstreamLost
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import CANCELLED_FLAG
from trt_mtp.serve.kserve import (
    bool_output,
    cancel_request,
    ends_answer,
    parse_stream_response,
)

SILENT_S = 10.0  # without a message after a variant was told to stop; then none comes
FINISH_S = 300.0  # for the rest of an answer; and without a message where a variant can't be told
MAX_REST_BYTES = 1 << 26  # of an answer that nobody wants
ASK_AGAIN_S = (0.0, 0.01, 0.05, 0.2, 1.0, 3.0)  # a variant that doesn't know the request yet


class Streams(Protocol):
    """Where streams come from and go back to: a server."""

    def take_stream(self, metadata: Metadata = ()) -> Upstream:
        """A stream with nothing in flight."""

    def give_back(self, upstream: Upstream) -> None:
        """Take it back."""

    def drop(self, upstream: Upstream) -> None:
        """Give it up: it stays silent."""


class Asked(Protocol):
    """A variant's model."""

    @property
    def model_name(self) -> str:
        """Its name in Triton."""

    @property
    def can_cancel(self) -> bool:
        """Does it know requests that cancel another one?"""


class Rest(Enum):
    """What became of the rest of an answer."""

    ENDED = "ended"  # by the variant
    LOST = "lost"  # with its stream
    DROPPED = "dropped"  # because nothing came


async def wind_down(streams: Streams, upstream: Upstream, variant: Asked, request_id: str) -> Rest:
    """End the request that is in flight on `upstream`, and give the stream back."""
    upstream.go_on()
    is_over = asyncio.Event()
    asking = asyncio.create_task(_ask_to_cancel(streams, variant, request_id, is_over))
    try:
        await _read_to_end(upstream, request_id, SILENT_S if variant.can_cancel else FINISH_S)
        streams.give_back(upstream)
        rest = Rest.ENDED
    except (UpstreamLost, InputError):  # or what comes is no message
        upstream.close()
        rest = Rest.LOST
    except TimeoutError:
        streams.drop(upstream)
        rest = Rest.DROPPED
    finally:
        is_over.set()
    await asking
    return rest


async def read_out(streams: Streams, upstream: Upstream) -> None:
    """Read a stream that takes no more requests until Triton ends it."""
    try:
        while True:
            async with asyncio.timeout(FINISH_S):
                await upstream.read()
    except UpstreamLost:
        upstream.close()
    except TimeoutError:
        streams.drop(upstream)


async def _read_to_end(upstream: Upstream, request_id: str, silent_s: float) -> None:
    """Throw away the rest of an answer.

    Raises TimeoutError when no message comes for `silent_s` or it doesn't end, UpstreamLost when
    the stream ends before.
    """
    num_bytes = 0
    async with asyncio.timeout(FINISH_S):
        while True:
            async with asyncio.timeout(silent_s):
                raw = await upstream.read()
            if ends_answer(raw, request_id):
                return
            num_bytes += len(raw)
            if num_bytes > MAX_REST_BYTES:  # it floods us
                raise TimeoutError


async def _ask_to_cancel(
    streams: Streams, variant: Asked, request_id: str, is_over: asyncio.Event
) -> None:
    """Ask until the variant has found the request or its answer is over, a few times."""
    for pause_s in ASK_AGAIN_S if variant.can_cancel else ():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), pause_s)
        if is_over.is_set() or await _is_told(streams, variant.model_name, request_id):
            return


async def _is_told(streams: Streams, model_name: str, request_id: str) -> bool:
    """Was the request found? Not known where nothing is told.

    Asked on a stream of its own, because Triton 2.51 aborts when it refuses a request on a stream
    on which an answer is under way, and it refuses all when it is about to unload the model.
    """
    control, own_id = streams.take_stream(), f"{request_id}/cancel"
    control.begin(cancel_request(model_name, own_id, request_id))
    try:
        while True:
            async with asyncio.timeout(SILENT_S):
                raw = await control.read()
            if ends_answer(raw, own_id):
                break
    except (UpstreamLost, InputError):
        control.close()
        return False
    except TimeoutError:
        streams.drop(control)
        return False
    streams.give_back(control)
    response = parse_stream_response(raw)
    return bool(response.error_message) or bool_output(response.infer_response, CANCELLED_FLAG)
