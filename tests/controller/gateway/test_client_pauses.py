"""Clients that take a little now and then: what they hold has an end, and teaches nothing."""

import asyncio
from typing import Any

import pytest

from tests.controller.gateway.request_path import Path
from tests.lease_fixtures import BackendDouble, call_of
from trt_mtp.controller.gateway import client_pauses
from trt_mtp.controller.gateway.failure import ClientStalledError
from trt_mtp.controller.outcome import Outcome

PAUSE_S = 0.02  # the doubles answer at once


async def sent_slowly(path: Path) -> list[bytes]:
    """The messages of an answer whose client takes each in its time."""
    taken: list[bytes] = []

    async def send(raw: bytes) -> None:
        await asyncio.sleep(PAUSE_S)
        taken.append(raw)

    async with asyncio.timeout(60):
        await path.proxy.handle(call_of("slow"), send)
    return taken


def outcome_of(path: Path) -> Outcome:
    """That of the one lease."""
    [lease] = path.closed
    assert lease.outcome is not None
    return lease.outcome


def test_who_has_an_answer_wait_for_too_long_in_all_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it takes each message in time; the place is free, and the variant not to blame."""
    monkeypatch.setattr(client_pauses, "HOLD_S", 0.0)

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)
        with pytest.raises(ClientStalledError, match="its answer wait for"):
            await sent_slowly(path)
        assert not any(variant.health.is_ejected for variant in path.pool.variants.values())
        assert path.counts()["num_failed"] == 1
        await path.check_idle()

    asyncio.run(scenario())


@pytest.mark.parametrize(("timed_s", "is_timed"), [(0.0, False), (60.0, True)])
def test_the_time_of_an_answer_that_its_client_had_wait_is_not_its_variants(
    timed_s: float, is_timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client's reading would have a draft length look slow to all others."""
    monkeypatch.setattr(client_pauses, "TIMED_S", timed_s)

    async def scenario() -> Any:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)
        assert len(await sent_slowly(path)) > 2
        await path.check_idle()
        return outcome_of(path).ttft_s

    assert (asyncio.run(scenario()) is not None) == is_timed
