"""A Redis that is a node of a cluster."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gateway_fixtures import wait_until
from tests.redis_server import RedisServer, redis_server
from trt_mtp.controller.gateway.shared.config import parse_shared
from trt_mtp.controller.gateway.shared.store import LeaseAsk, PlacesAsk, RedisStore
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import free_ports


@contextmanager
def node(folder: Path) -> Iterator[tuple[RedisServer, int]]:
    """One that has no keys yet, and its port for other nodes.

    By default that is 10,000 more than its own, where the kernel takes ports for connections.
    """
    folder.mkdir()
    port = free_ports({"cluster": 0})["cluster"]
    options = ("--cluster-enabled", "yes", "--cluster-port", str(port), "--dir", str(folder))
    with redis_server(*options) as server:
        yield server, port


async def exchange(server: RedisServer) -> None:
    """What a gateway asks of it."""
    store = RedisStore(parse_shared(server.url), "qwen_mtp", "", "me")
    try:
        await store.publish(b"x", 60.0)
        assert await store.read(["me"]) == {"me": b"x"}
        [lease] = await store.lease([LeaseAsk("a", 1.0, 5.0, 0.0, 2.0)])
        assert lease.granted == 2.0
        assert await store.hold([PlacesAsk("a", 0, 2, 2)], 60.0) == [2]
        await store.leave()
    finally:
        await store.close()


def test_the_node_that_has_the_keys_serves_and_others_name_it(tmp_path: Path) -> None:
    """A model's keys are in one place; nothing is said but what there is to do."""
    with node(tmp_path / "a") as (one, port), node(tmp_path / "b") as (other, _):
        with pytest.raises(TrtMtpError, match="a node of a cluster that isn't ready"):
            asyncio.run(exchange(one))
        assert one.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383").startswith(b"+OK")
        met = other.command("CLUSTER", "MEET", "127.0.0.1", str(one.port), str(port))
        assert met.startswith(b"+OK")
        nodes = (one, other)
        wait_until(lambda: all(b"cluster_state:ok" in n.command("CLUSTER INFO") for n in nodes))
        asyncio.run(exchange(one))
        with pytest.raises(TrtMtpError, match=f"--shared the address .* 127.0.0.1:{one.port} now"):
            asyncio.run(exchange(other))
