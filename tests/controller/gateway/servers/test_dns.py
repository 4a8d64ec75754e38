"""A DNS that lies or breaks ends nothing: what was known stays until an honest answer comes."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from trt_mtp.controller.gateway.servers import sources
from trt_mtp.controller.gateway.servers.sources import MAX_SERVERS, DnsServers, Server
from trt_mtp.errors import InputError

GOOD = ["10.0.0.1:8001"]


def followed(
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[list[str] | Exception],
    report: Callable[[Sequence[Server]], None],
) -> DnsServers:
    """What is made of answers, one after the other; the last one is repeated."""
    left = list(answers)

    async def resolve(name: str, port: int) -> list[str]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sources, "resolve", resolve)
    monkeypatch.setattr(sources, "RESOLVE_S", 0.0)
    servers = DnsServers("variants.test:8001")

    async def follow() -> None:
        watching = asyncio.create_task(servers.watch(report))
        async with asyncio.timeout(60):
            while len(left) > 1 or not servers.servers:
                await asyncio.sleep(0)
                assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(follow())
    return servers


@pytest.mark.parametrize(
    "wrong",
    [
        [f"10.{a}.{b}.1:8001" for a in range(17) for b in range(256)],
        UnicodeError("label empty or too long"),
        OSError(-2, "Name or service not known"),
    ],
    ids=["thousands of addresses", "no name", "no answer"],
)
def test_a_wrong_answer_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, wrong: list[str] | Exception
) -> None:
    """The servers before it stay, and the watch goes on."""
    reported: list[Sequence[Server]] = []
    followed(monkeypatch, [GOOD, wrong, GOOD], reported.append)
    assert {tuple(servers) for servers in reported} == {(Server(GOOD[0]),)}
    assert MAX_SERVERS < 17 * 256


def test_servers_that_cant_be_taken_over_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS files that are being replaced in that moment end no watch."""
    reported: list[Sequence[Server]] = []

    def report(servers: Sequence[Server]) -> None:
        reported.append(servers)
        if len(reported) == 1:
            raise InputError("a certificate and its key do not fit")

    assert followed(monkeypatch, [GOOD, GOOD, GOOD], report).problem == ""
    assert len(reported) > 1
