"""The streams of a load client: kept between requests, and ended if their server is lost."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from trt_mtp.controller.gateway.servers.triton_channel import TritonChannel
from trt_mtp.controller.gateway.servers.upstream import Metadata, Upstream
from trt_mtp.serve.kserve import may_end_answer

LOOK_S = 1.0
MAX_ANSWER_BYTES = 1 << 26  # of one answer's messages
QUIET_S = 3.0  # without a message on any stream; then the server is asked whether it lives
LIVE_S = 4.0  # for it to answer that, twice: a busy one does in milliseconds
MODEL_SILENT_S = 300.0  # without a message though it lives: the longest prompt is read by then
CONNECT_S = 3.0
CLOSE_S = 2.0  # for the server to end the streams after us
UNREACHABLE = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
)


@dataclass(slots=True)
class RawAnswer:
    """The messages of an answer, with their times."""

    sent_s: float = 0.0
    arrived_s: list[float] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    error: str = ""
    is_lost: bool = False


class RecordedCall:
    """A ModelStreamInfer call that notes what comes in, and hands on only what may end an answer.

    Times are taken where bytes are sent and come in, and whoever waits for an answer is woken once,
    so that an Upstream's reader adds nothing to what is measured.
    """

    __slots__ = ("call", "into")

    def __init__(self, call: Any) -> None:
        self.call = call
        self.into = RawAnswer()

    @property
    def heard_s(self) -> float:
        """When the last message came in, or the request was sent."""
        return self.into.arrived_s[-1] if self.into.arrived_s else self.into.sent_s

    async def read(self) -> Any:
        """The next message that may be the last one of its answer, or grpc.aio.EOF."""
        clock, read, num_bytes = time.perf_counter, self.call.read, 0
        # an idle stream waits here; the call's end is the end of it
        while (raw := await read()) is not grpc.aio.EOF:
            into = self.into
            into.arrived_s.append(clock())
            into.messages.append(raw)
            if may_end_answer(raw):
                break
            num_bytes += len(raw)
            if num_bytes > MAX_ANSWER_BYTES:  # it sends without end
                self.call.cancel()
                return grpc.aio.EOF
        return raw

    async def write(self, raw: bytes) -> None:
        """Send a request."""
        self.into.sent_s = time.perf_counter()
        await self.call.write(raw)

    async def done_writing(self) -> None:
        """Half-close."""
        await self.call.done_writing()

    def done(self) -> bool:
        """True if the call has ended."""
        return bool(self.call.done())

    def cancel(self) -> None:
        """End it at once."""
        self.call.cancel()


class LoadStreams:
    """A connection to a server. Make it inside the event loop that uses it."""

    def __init__(self, url: str) -> None:
        """`url` is host:port."""
        self.lost = ""  # why the last connection was given up
        self._url = url
        self._channel = TritonChannel(url)
        self._idle: list[Upstream] = []
        self._leased: set[Upstream] = set()
        self._closing: set[asyncio.Task[None]] = set()  # lost connections

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """One unary RPC, bytes in and out; raises grpc.aio.AioRpcError."""
        return bytes(await self._channel.unary[method](request, timeout=timeout_s))

    async def connect(self) -> None:
        """Wait for a connection, CONNECT_S at most; where there is none the streams say why.

        A first request would fail with the first attempt, and a busy server may take more than one.
        """
        if not any(upstream.is_open for upstream in self._idle):
            live = self._channel.unary["ServerLive"]
            with contextlib.suppress(grpc.aio.AioRpcError):
                await live(b"", timeout=CONNECT_S, wait_for_ready=True)

    def take_stream(self, metadata: Metadata = ()) -> Upstream:
        """A stream for one request, with nothing in flight."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.is_open:
                break
        else:
            self._leased = {one for one in self._leased if one.is_open}
            call = RecordedCall(self._channel.stream(metadata=metadata))
            upstream = Upstream(call, is_shared=True)
        upstream.call.into = RawAnswer()
        self._leased.add(upstream)
        return upstream

    def give_back(self, upstream: Upstream) -> None:
        """Take back a stream on which nothing is in flight; one of a lost connection is none."""
        if upstream in self._leased:
            self._leased.discard(upstream)
            self._idle.append(upstream)

    def drop(self, upstream: Upstream) -> None:
        """Give up a stream that stays silent, with its connection; new ones have another."""
        self._leased.discard(upstream)
        self._channel.drop(upstream.call.call)
        for idle in self._idle:  # nothing is in flight on them
            self._channel.drop(idle.call.call)
        self._idle.clear()

    async def watch(self) -> None:
        """Give up the connection when the server neither sends nor answers; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            quiet_s = time.perf_counter() - self._heard_s()
            if quiet_s > MODEL_SILENT_S:
                self.lose(f"it says that it lives and sent nothing for {quiet_s:.0f} s")
            elif quiet_s > QUIET_S and not await self._is_live():
                quiet_s = time.perf_counter() - self._heard_s()
                self.lose(f"it sent nothing for {quiet_s:.0f} s and doesn't say that it lives")

    def _heard_s(self) -> float:
        """When the last message came, on whichever stream."""
        now_s = time.perf_counter()
        return max((upstream.call.heard_s for upstream in self._leased), default=now_s)

    async def _is_live(self) -> bool:
        """Does it answer, or send something meanwhile?"""
        before_s = self._heard_s()
        for _ in range(2):
            try:
                await self.call("ServerLive", b"", LIVE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNREACHABLE or self._heard_s() > before_s:
                    return True
            else:
                return True
        return False

    def lose(self, reason: str) -> None:
        """Give up the connection: whoever reads from it is told."""
        self.lost = reason
        self._idle.clear()
        self._leased.clear()
        closing = asyncio.create_task(self._channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._channel = TritonChannel(self._url)

    async def close(self) -> None:
        """Half-close the streams, wait CLOSE_S at most for their end, and close the connection."""
        ending = [asyncio.create_task(upstream.end()) for upstream in self._idle]
        self._idle.clear()
        if ending or self._closing:
            await asyncio.wait([*ending, *self._closing], timeout=CLOSE_S)
        await self._channel.close()
