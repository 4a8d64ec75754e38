"""Answers of Kubernetes' API that lie: they change nothing, and the next honest one is taken."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_fixtures import connections_closed
from tests.kubernetes_api import (
    NAMESPACE,
    REDIRECT,
    SERVICE,
    KubernetesApi,
    endpoint_slice,
    kubernetes_api,
)
from trt_mtp.controller.gateway.servers import kubernetes
from trt_mtp.controller.gateway.servers.sources import Server, source_of

TRITON = f"kubernetes:{NAMESPACE}/{SERVICE}"
FIRST, SECOND = "10.0.0.1:8001", "10.0.0.2:8001"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The double of the API with one server, asked again soon after it fails."""
    monkeypatch.setattr(kubernetes, "MAX_RETRY_S", 0.05)
    monkeypatch.setattr(kubernetes, "LIST_BYTES", 2**20)
    with kubernetes_api(tmp_path / "account", monkeypatch) as double:
        double.put("a", FIRST)
        yield double


async def until(is_true: Callable[[], Any]) -> None:
    """Wait for what another task or thread does."""
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.01)


async def ended(watching: "asyncio.Task[None]") -> None:
    """Cancel it, and wait for what it leaves behind."""
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await connections_closed()


def listed(**changes: Any) -> bytes:
    """A list with one slice that is changed."""
    one = endpoint_slice("a", SECOND, "a") | changes
    return json.dumps({"metadata": {"resourceVersion": "1000"}, "items": [one]}).encode()


def endpoints(*addresses: str) -> list[dict[str, Any]]:
    """One endpoint with these addresses."""
    return [{"addresses": list(addresses)}]


LIES = {
    "no address": (listed(endpoints=endpoints()), "at least 1 item"),
    "a path for an address": (listed(endpoints=endpoints("unix:/tmp/x")), "unix:/tmp/x"),
    "two servers for an address": (listed(endpoints=endpoints("10.0.0.3:1,10.0.0.4")), "10.0.0.3"),
    "a name for an address": (listed(endpoints=endpoints("example.com")), "example.com"),
    "IPv6 called IPv4": (listed(endpoints=endpoints("fd00::1")), "fd00::1"),
    "a port beyond all": (listed(ports=[{"name": "grpc", "port": 70_000}]), "65535"),
    "very many servers": (
        listed(endpoints=[{"addresses": [f"10.1.{n // 256}.{n % 256}"]} for n in range(5_000)]),
        "names 5,000 servers",
    ),
    "very many bytes": (b" " * (2**20 + 1), "more than 1,048,576 bytes"),
    "nested too deeply": (b"[" * 100_000, "JSON"),
    "not JSON": (b"\xff", "JSON"),
    "another place to ask": (REDIRECT, "it answers 302"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_changes_nothing(api: KubernetesApi, name: str) -> None:
    """What was known stays, the problem is told, and honest news are taken after it."""
    lie, problem = LIES[name]

    async def scenario() -> None:
        source = source_of(TRITON)
        watching = asyncio.create_task(source.watch(lambda servers: None))
        try:
            await until(lambda: source.servers and "watch" in api.asked[-1])
            api.lie = lie
            api.expire(is_told=True)
            await until(lambda: source.problem)
            assert problem in source.problem
            assert source.servers == [Server(FIRST, "a")]
            api.lie = None
            api.put("b", SECOND)
            await until(lambda: len(source.servers) == 2)
            assert source.problem == ""
        finally:
            await ended(watching)

    asyncio.run(scenario())


def test_an_api_that_forgets_at_once_is_not_asked_without_pause(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that ends as it begins is not begun again and again."""
    monkeypatch.setattr(kubernetes, "PACE_S", 3600.0)

    async def scenario() -> None:
        api.expire(is_told=False)
        api.lie = listed().replace(b"1000", b"1")  # a version that it has no more
        source = source_of(TRITON)
        watching = asyncio.create_task(source.watch(lambda servers: None))
        try:
            await until(lambda: len(api.asked) == 4)
            await asyncio.sleep(0.5)  # for more, if there were
            assert ["watch" in query for query in api.asked] == [False, True, False, True]
        finally:
            await ended(watching)

    asyncio.run(scenario())
