"""A stream to Triton alone, over calls that do what grpc.aio's do at times."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc.aio import Metadata

from tests.gateway_fixtures import script_request
from trt_mtp.controller.gateway.servers import winding_down
from trt_mtp.controller.gateway.servers.triton_channel import TritonChannel
from trt_mtp.controller.gateway.servers.upstream import (
    MAX_AHEAD,
    MAX_AHEAD_BYTES,
    Upstream,
    UpstreamLost,
)
from trt_mtp.serve.kserve import ends_answer
from trt_mtp.serve.triton import TritonServer


class Call:
    """A double of a grpc.aio call: messages as they are put, writes that may fail."""

    def __init__(self, write_error: Exception | None = None) -> None:
        self.arriving: asyncio.Queue[Any] = asyncio.Queue()
        self.num_read = 0
        self._write_error = write_error

    async def write(self, raw: bytes) -> None:
        """Take a message."""
        if self._write_error is not None:
            raise self._write_error

    async def read(self) -> Any:
        """The next message, however long it takes."""
        self.num_read += 1
        return await self.arriving.get()

    def done(self) -> bool:
        """Has it ended?"""
        return False

    def cancel(self) -> None:
        """Nothing is in flight."""


def internal_error() -> grpc.aio.AioRpcError:
    """What grpc.aio makes of a write that core refuses."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, Metadata(), Metadata(), "Internal error from Core"
    )


@pytest.mark.parametrize("error", [internal_error(), asyncio.InvalidStateError("RPC finished")])
def test_a_request_that_is_not_sent_ends_the_waiting(error: Exception) -> None:
    """grpc.aio was seen to tell nothing to a read that waits meanwhile."""

    async def scenario() -> None:
        upstream = Upstream(Call(error), is_shared=True)
        await asyncio.sleep(0)  # it reads already
        upstream.begin(b"request")
        with pytest.raises(UpstreamLost) as lost:
            await asyncio.wait_for(upstream.read(), 30)
        assert lost.value.is_unsent
        assert not upstream.is_open
        upstream.close()

    asyncio.run(scenario())


def test_a_reader_may_stop_waiting_and_come_back() -> None:
    """What comes in between is there, in order, and the call was not cancelled for it."""

    async def scenario() -> None:
        call = Call()
        upstream = Upstream(call, is_shared=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(upstream.read(), 0.01)
        upstream.give_up(UpstreamLost("nothing came", is_hung=True))
        with pytest.raises(UpstreamLost, match="nothing came"):
            await upstream.read()
        upstream.go_on()
        for number in range(3):
            call.arriving.put_nowait(b"%d" % number)
        assert [await upstream.read() for _ in range(3)] == [b"0", b"1", b"2"]
        call.arriving.put_nowait(grpc.aio.EOF)
        with pytest.raises(UpstreamLost) as lost:
            await upstream.read()
        assert lost.value.is_orderly
        upstream.close()

    asyncio.run(scenario())


def test_no_more_is_read_ahead_than_a_few_messages() -> None:
    """A client that reads slowly holds its own stream, by HTTP/2's flow control."""

    async def scenario() -> None:
        call = Call()
        upstream = Upstream(call, is_shared=True)
        for number in range(20):
            call.arriving.put_nowait(b"%d" % number)
        for _ in range(100):
            await asyncio.sleep(0)
        assert call.num_read == MAX_AHEAD
        assert [await upstream.read() for _ in range(20)] == [b"%d" % n for n in range(20)]
        upstream.close()

    asyncio.run(scenario())


def test_nor_than_a_few_bytes() -> None:
    """A server that lies may send messages of any size."""

    async def scenario() -> None:
        call = Call()
        upstream = Upstream(call, is_shared=True)
        large = bytes(MAX_AHEAD_BYTES + 1)
        for _ in range(3):
            call.arriving.put_nowait(large)
        for _ in range(100):
            await asyncio.sleep(0)
        assert call.num_read == 1
        assert [await upstream.read() for _ in range(3)] == [large] * 3
        upstream.close()

    asyncio.run(scenario())


def test_the_rest_of_an_answer_may_not_flood_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends on, whatever it is told, is given up."""
    monkeypatch.setattr(winding_down, "MAX_REST_BYTES", 1_000)
    given_up: list[Upstream] = []

    class Streams:
        def take_stream(self, metadata: Any = ()) -> Upstream:
            raise AssertionError

        def give_back(self, upstream: Upstream) -> None:
            raise AssertionError

        def drop(self, upstream: Upstream) -> None:
            given_up.append(upstream)

    class Variant:
        model_name, can_cancel = "qwen_mtp_k3", False

    async def scenario() -> None:
        call = Call()
        upstream = Upstream(call, is_shared=True)
        for _ in range(20):
            call.arriving.put_nowait(bytes(100))
        async with asyncio.timeout(60):
            rest = await winding_down.wind_down(Streams(), upstream, Variant(), "a")
        assert rest is winding_down.Rest.DROPPED
        assert given_up == [upstream]
        upstream.close()

    asyncio.run(scenario())


class LateToSay:
    """A call that says that a request was sent when its answer is there, as gRPC may on a busy CPU.

    gRPC ends a call on which two requests are being sent, and leaves a read of it waiting.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._num_sending = self.most_at_once = 0
        self.was_read = asyncio.Event()

    async def write(self, raw: bytes) -> None:
        self._num_sending += 1
        self.most_at_once = max(self.most_at_once, self._num_sending)
        await self._call.write(raw)
        await self.was_read.wait()
        await asyncio.sleep(0.02)
        self._num_sending -= 1

    async def read(self) -> Any:
        raw = await self._call.read()
        self.was_read.set()
        return raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def test_a_request_is_sent_after_the_one_before_it(doubles: TritonServer) -> None:
    """Also where the answer comes before the news that its request was sent."""

    async def ask() -> int:
        channel = TritonChannel(doubles.grpc_url)
        call = LateToSay(channel.stream())
        upstream = Upstream(call, is_shared=True)
        for number in range(5):
            call.was_read.clear()
            request = script_request("qwen_mtp_k0", str(number), tokens=1)
            upstream.begin(request.SerializeToString())
            while not ends_answer(await upstream.read(), str(number)):
                pass
        await upstream.end()
        await channel.close()
        return call.most_at_once

    assert asyncio.run(asyncio.wait_for(ask(), 60)) == 1
