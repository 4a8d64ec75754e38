"""Another server gets the address of the store, as managed ones have it after a failover."""

import asyncio

import pytest

from tests.redis_server import RedisServer, redis_server
from trt_mtp.controller.gateway.shared.config import parse_shared
from trt_mtp.controller.gateway.shared.store import RedisStore
from trt_mtp.errors import TrtMtpError


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward what comes until there is no more."""
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


def test_a_server_that_became_a_replica_is_left(redis: RedisServer) -> None:
    """One exchange fails; the connection to it would stay open, and refuse for good."""
    with redis_server() as promoted:

        async def steps() -> None:
            ports = [redis.port]

            async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                further = await asyncio.open_connection("127.0.0.1", ports[-1])
                await asyncio.gather(pump(reader, further[1]), pump(further[0], writer))

            address = await asyncio.start_server(forward, "127.0.0.1")
            port = address.sockets[0].getsockname()[1]
            store = RedisStore(parse_shared(f"redis://127.0.0.1:{port}"), "qwen_mtp", "", "me")
            assert await store.publish(b"x", 60.0) == ["me"]
            redis.command("REPLICAOF", "127.0.0.1", str(promoted.port))
            ports.append(promoted.port)
            try:
                with pytest.raises(TrtMtpError, match="read only replica"):
                    await store.publish(b"x", 60.0)
                assert await store.publish(b"x", 60.0) == ["me"]
            finally:
                redis.command("REPLICAOF", "NO", "ONE")
                await store.close()
                address.close()
            await asyncio.sleep(0.1)

        asyncio.run(steps())
