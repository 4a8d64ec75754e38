"""A server in the place of the Redis that sends without end costs no memory and no gateway."""

import asyncio
import tracemalloc

import pytest

from trt_mtp.controller.gateway.shared import bounded_connection
from trt_mtp.controller.gateway.shared.bounded_connection import MAX_EXCHANGE_BYTES
from trt_mtp.controller.gateway.shared.config import parse_shared
from trt_mtp.controller.gateway.shared.store import RedisStore
from trt_mtp.errors import TrtMtpError

LITTLE = 1 << 20


@pytest.mark.parametrize(
    "answer",
    [b"$4000000000\r\n", b"*4000000000\r\n" + b":1\r\n" * 100_000, b"*1\r\n" * 100_000],
    ids=["a long text", "a long list", "a deep one"],
)
def test_what_is_too_long_is_not_read(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange fails, and the gateway goes on with what it knows."""
    monkeypatch.setattr(bounded_connection, "MAX_EXCHANGE_BYTES", LITTLE)

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1000):
                writer.write(answer + bytes(1000))
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(lie, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        store = RedisStore(parse_shared(f"redis://127.0.0.1:{port}"), "qwen_mtp", "a", "one")
        tracemalloc.start()
        with pytest.raises(TrtMtpError):
            await store.publish(b"x", 1.0)
        assert tracemalloc.get_traced_memory()[1] < 16 * LITTLE
        tracemalloc.stop()
        await store.close()
        server.close()
        await asyncio.sleep(0.1)

    asyncio.run(ask())
    assert MAX_EXCHANGE_BYTES > 32 << 20  # 32 gateways' longest counts are one exchange
