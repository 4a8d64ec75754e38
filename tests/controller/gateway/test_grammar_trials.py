"""Grammars that variants have to try: they take no places from others, and go by turns."""

import asyncio
from typing import Any

import pytest

from tests.controller.gateway.request_path import Path
from tests.lease_fixtures import BackendDouble, call_of
from trt_mtp.controller.gateway.admission_queue import GUIDED_SHARE, OWNER_FACTOR, AdmissionQueue
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.failure import QueueFullError
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.controller.gateway.servers.candidates import MAX_ON_TRIAL

NUM_VARIANTS = 4  # of a Path


class OwnerDouble:
    """Somebody who sends requests."""

    highest_priority = 1

    def __init__(self, owner: str) -> None:
        self.owner = owner


def guided(name: str, owner: str = "one") -> InferenceCall:
    """A request with a grammar."""
    caller: Any = OwnerDouble(owner)
    return call_of(name, is_guided=True, caller=caller)


def test_a_grammar_on_trial_takes_no_place() -> None:
    """A few are tried at each variant; plain requests have all places meanwhile."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=1)
        tried = [path.router.place(guided(str(n))) for n in range(NUM_VARIANTS * MAX_ON_TRIAL + 1)]
        assert tried.pop() is None
        plain = [path.router.place(call_of(str(n))) for n in range(NUM_VARIANTS + 1)]
        assert plain.pop() is None
        for lease in [*tried, *plain]:
            assert lease is not None
            lease.close()
        await path.check_idle()

    asyncio.run(scenario())


def test_an_accepted_grammar_takes_a_place() -> None:
    """The client sees nothing of that; when its answer is over, nothing is held."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=1)
        lease = path.router.place(guided("mine"))
        assert lease is not None
        replica = lease.replica
        assert (replica.num_running, replica.num_on_trial, lease.has_begun) == (0, 1, False)
        with lease:
            messages = [await anext(lease)]
            assert (replica.num_running, replica.num_on_trial) == (1, 0)
            messages += [message async for message in lease]
        assert b"requests_in_flight" not in b"".join(messages)
        await path.check_idle()

    asyncio.run(scenario())


def queue_of(placed: list[str], free: list[int], max_waiting: int) -> AdmissionQueue:
    """A queue in front of as many places as the last of `free` says."""

    def place(call: InferenceCall) -> Lease | None:
        if not free[-1]:
            return None
        free[-1] -= 1
        placed.append(call.client_id)
        raise TimeoutError  # the call is over

    counter = Scoreboard(None).counter("waiting")
    return AdmissionQueue(
        place, lambda call: (call.features.is_guided,), max_waiting, 60.0, counter, lambda _: None
    )


def test_grammars_go_by_turns() -> None:
    """Many of one owner don't keep the first of another waiting."""

    async def scenario() -> None:
        placed: list[str] = []
        free = [0]
        queue = queue_of(placed, free, 100)
        calls = [guided(f"a{n}", "a") for n in range(5)] + [guided(f"b{n}", "b") for n in range(2)]
        tasks = [asyncio.create_task(queue.place(call)) for call in calls]
        await asyncio.sleep(0)
        free[-1] = len(calls)
        queue.serve_waiting()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert placed == ["a0", "b0", "a1", "b1", "a2", "a3", "a4"]
        assert queue.num_waiting == 0
        # who comes later waits no longer than its own before, and others no longer for those
        first = [asyncio.create_task(queue.place(guided(f"c{n}", "c"))) for n in range(3)]
        await asyncio.sleep(0)
        for number in range(3):
            free[-1] = 1
            queue.serve_waiting()
            first.append(asyncio.create_task(queue.place(guided(f"d{number}", "c"))))
            await asyncio.sleep(0)
        assert placed[-3:] == ["c0", "c1", "c2"]
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)

    asyncio.run(scenario())


def test_grammars_leave_others_room_to_wait() -> None:
    """One owner may not fill the queue, neither for other grammars nor for plain requests."""

    async def scenario() -> None:
        queue = queue_of([], [0], 100)
        refused = 0
        tasks = [asyncio.create_task(queue.place(guided(str(n), "a"))) for n in range(200)]
        await asyncio.sleep(0)
        refused = sum(task.done() for task in tasks)
        assert queue.num_waiting == 200 - refused <= 100 * GUIDED_SHARE * OWNER_FACTOR / 5 + 1
        with pytest.raises(QueueFullError, match="guided_decoding wait for their grammars"):
            await queue.place(guided("last", "a"))
        others = [asyncio.create_task(queue.place(c)) for c in (guided("b", "b"), call_of("p"))]
        await asyncio.sleep(0)
        assert not any(task.done() for task in others)
        for task in [*tasks, *others]:
            task.cancel()
        await asyncio.gather(*tasks, *others, return_exceptions=True)
        assert queue.num_waiting == 0

    asyncio.run(scenario())
