"""What a client's stream has not taken yet: nobody waits for ever for a client that is gone."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.failure import RpcError
from trt_mtp.controller.gateway.grpc_stream import GrpcStream
from trt_mtp.controller.gateway.outbox import MAX_BYTES, Outbox

MODEL = "qwen_mtp"


class GoneClient:
    """A double of gRPC's context: one request, then nothing can be written and nobody says why."""

    def __init__(self) -> None:
        self._requests = [pb.ModelInferRequest(model_name=MODEL).SerializeToString()]

    def invocation_metadata(self) -> tuple[()]:
        """None."""
        return ()

    def time_remaining(self) -> None:
        """No deadline."""

    async def read(self) -> Any:
        """The request, then none for ever."""
        if not self._requests:
            await asyncio.get_running_loop().create_future()
        return self._requests.pop()

    async def write(self, _: bytes) -> None:
        """As gRPC on a connection that is no more."""
        raise grpc.aio.InternalError("the call is over")


class EndlessAnswer:
    """A double of the proxy: an answer that doesn't end, of whoever sends it."""

    def __init__(self) -> None:
        self.pool = SimpleNamespace(public_name=MODEL)
        self.is_ended = False

    def open(self, *_: Any) -> None:
        """No call is needed here."""

    async def handle(self, _: None, send: Any) -> None:
        """Send without end."""
        try:
            while True:
                await send(bytes(MAX_BYTES // 2))
        finally:
            self.is_ended = True


def test_an_answer_to_a_client_that_is_gone_ends() -> None:
    """Also where gRPC doesn't cancel the call: what waits for room gives its place back."""
    proxy, client = EndlessAnswer(), GoneClient()

    async def scenario() -> None:
        stream = GrpcStream(proxy, Caller(None, None), client, 300.0)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            await stream.run()

    with pytest.raises(RpcError, match="the client is gone"):
        asyncio.run(scenario())
    assert proxy.is_ended


class SlowClient:
    """A double of gRPC's context: each message is taken when that is allowed."""

    def __init__(self) -> None:
        self.allowed = asyncio.Semaphore(0)

    async def write(self, _: bytes) -> None:
        """Until the client takes it."""
        await self.allowed.acquire()


def test_a_client_that_takes_a_little_now_and_then_is_known() -> None:
    """Since when answers wait for it is told until it has taken half of what waits."""

    async def scenario() -> None:
        client = SlowClient()
        outbox, piece = Outbox(client), bytes(MAX_BYTES // 8)
        running = asyncio.create_task(outbox.run())
        for _ in range(8):
            await outbox.put(piece)
        assert outbox.full_since == math.inf
        waiting = asyncio.create_task(outbox.put(piece))
        await asyncio.sleep(0)
        since = outbox.full_since
        assert since < math.inf
        client.allowed.release()
        await waiting
        assert outbox.full_since == since
        for _ in range(4):
            client.allowed.release()
        async with asyncio.timeout(60):
            while outbox.full_since != math.inf:
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
