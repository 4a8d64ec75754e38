"""The queue alone: whose trouble is whose, and that nobody waits without an end."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lease_fixtures import call_of, lease_of
from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.admission_queue import AdmissionQueue, Waiter
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.failure import NotReadyError, QueueFullError
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.errors import TrtMtpError


class Slots:
    """Places by request id: how many are free, or what is raised for it."""

    def __init__(self, num_free: int = 0) -> None:
        self.num_free = num_free
        self.full_lengths = set[int]()  # that have no place whatever is free
        self.errors: dict[str, Exception] = {}
        self.placed: list[str] = []

    def place(self, call: InferenceCall) -> Lease | None:
        """Take a slot."""
        if call.client_id in self.errors:
            raise self.errors[call.client_id]
        if self.num_free == 0 or call.features.hint_draft_length in self.full_lengths:
            return None
        self.num_free -= 1
        self.placed.append(call.client_id)
        return lease_of(call)


def queue_of(slots: Slots, failover_wait_s: float = 60.0, max_waiting: int = 100) -> AdmissionQueue:
    """A queue in front of `slots`; whoever asks for another draft length is of another kind."""
    counter = Scoreboard(None).counter("waiting")
    return AdmissionQueue(
        slots.place,
        lambda call: (call.features.hint_draft_length,),
        max_waiting,
        failover_wait_s,
        counter,
        lambda change: None,
    )


async def waiting(admission: AdmissionQueue, *names: str) -> dict[str, "asyncio.Task[Lease]"]:
    """Requests that have come to wait."""
    tasks = {name: asyncio.create_task(admission.place(call_of(name))) for name in names}
    await asyncio.sleep(0)
    assert admission.num_waiting == len(names)
    return tasks


def test_one_caller_keeps_no_other_out() -> None:
    """A full queue gives up the last request of whoever has the most; places go by turns."""

    async def scenario() -> None:
        slots, one, other = (
            Slots(),
            Caller(None, None, network="a"),
            Caller(None, None, network="b"),
        )
        admission = queue_of(slots, max_waiting=4)

        def place(name: str, caller: Caller) -> "asyncio.Task[Lease]":
            return asyncio.create_task(admission.place(call_of(name, caller=caller)))

        tasks = {name: place(name, one) for name in ("a1", "a2", "a3", "a4")}
        tasks |= {"b1": place("b1", other), "b2": place("b2", other), "b3": place("b3", other)}
        await asyncio.sleep(0)
        for refused in ("a4", "a3", "b3"):
            with pytest.raises(QueueFullError):
                await tasks[refused]
        assert admission.num_waiting == 4
        slots.num_free = 4
        admission.serve_waiting()
        await asyncio.gather(*[tasks[name] for name in ("a1", "a2", "b1", "b2")])
        assert slots.placed == ["a1", "b1", "a2", "b2"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_what_one_caller_is_served_elsewhere_puts_nobody_behind_its_others() -> None:
    """Requests of one kind are served while many of another that came before them wait."""

    async def scenario() -> None:
        slots, one = Slots(), Caller(None, None, network="a")
        admission = queue_of(slots)

        def place(name: str, caller: Caller, hint: int) -> "asyncio.Task[Lease]":
            return asyncio.create_task(admission.place(call_of(name, hint=hint, caller=caller)))

        many = [place(f"a{number}", one, 0) for number in range(20)]
        elsewhere = [place(f"e{number}", one, 3) for number in range(5)]
        await asyncio.sleep(0)
        slots.full_lengths, slots.num_free = {0}, 5
        admission.serve_waiting()
        await asyncio.gather(*elsewhere)
        other = place("b", Caller(None, None, network="b"), 0)
        await asyncio.sleep(0)
        slots.full_lengths, slots.num_free, slots.placed = set(), 3, []
        admission.serve_waiting()
        await asyncio.wait_for(other, 60)
        assert slots.placed == ["a0", "b", "a1"]
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        assert admission.num_waiting == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [TrtMtpError("no"), ValueError("a defect"), KeyError("x")])
def test_whatever_is_raised_for_a_request_is_its_own(error: Exception) -> None:
    """It leaves the queue with it; those behind get their slots, and serving never raises."""

    async def scenario() -> None:
        slots = Slots()
        admission = queue_of(slots)
        tasks = await waiting(admission, "bad", "good")
        slots.errors["bad"], slots.num_free = error, 1
        admission.serve_waiting()
        await tasks["good"]
        with pytest.raises(type(error)):
            await tasks["bad"]
        assert slots.placed == ["good"]
        admission.serve_waiting()
        assert admission.num_waiting == 0

    asyncio.run(scenario())


def test_variants_that_are_not_ready_are_waited_for_a_limited_time() -> None:
    """Then the refusal says for how long; one that gets ready in time takes the request."""

    async def scenario(is_in_time: bool) -> None:
        slots = Slots(num_free=1)
        slots.errors["a"] = NotReadyError("nothing is ready")
        admission = queue_of(slots, failover_wait_s=60.0 if is_in_time else 0.0)
        tasks = await waiting(admission, "a")
        if is_in_time:
            admission.serve_waiting()
            assert not tasks["a"].done()
            del slots.errors["a"]
            admission.serve_waiting()
            await tasks["a"]
        else:
            admission.serve_waiting()
            with pytest.raises(NotReadyError, match=r"nothing is ready, after 0\.0 s of waiting"):
                await tasks["a"]

    asyncio.run(scenario(True))
    asyncio.run(scenario(False))


def test_who_leaves_takes_no_slot() -> None:
    """A waiter that was cancelled is passed over."""

    async def scenario() -> None:
        slots = Slots()
        admission = queue_of(slots)
        tasks = await waiting(admission, "leaves", "stays")
        tasks["leaves"].cancel()
        slots.num_free = 1
        admission.serve_waiting()  # before the cancelled task has run
        await tasks["stays"]
        assert slots.placed == ["stays"]

    asyncio.run(scenario())


def test_who_leaves_in_the_moment_of_being_placed_gives_it_back() -> None:
    """Its lease is closed, as of a client that left."""

    async def scenario() -> None:
        slots = Slots()
        admission, call = queue_of(slots), call_of("leaves")
        task = asyncio.create_task(admission.place(call))
        await asyncio.sleep(0)
        slots.num_free = 1
        admission.serve_waiting()
        task.cancel()  # before it has run again
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.outcome is not None
        assert call.outcome.finish_reason == "cancelled"

    asyncio.run(scenario())


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("come"), st.integers(0, 3)),
            st.tuples(st.just("free"), st.integers(1, 3)),
            st.tuples(st.just("leave"), st.integers(0, 10)),
            st.tuples(st.just("break"), st.integers(0, 10)),
        ),
        max_size=40,
    )
)
def test_every_request_ends_once(steps: list[tuple[str, int]]) -> None:
    """Placed, failed or gone, and nothing is left in the queue."""

    async def scenario() -> None:
        slots = Slots()
        admission = queue_of(slots)
        tasks: dict[str, asyncio.Task[Lease]] = {}
        for what, number in steps:
            names = list(tasks)
            if what == "come":
                name = f"{len(tasks)}"
                tasks[name] = asyncio.create_task(admission.place(call_of(name, priority=number)))
            elif what == "free":
                slots.num_free += number
                admission.serve_waiting()
            elif names and what == "leave":
                tasks[names[number % len(names)]].cancel()
            elif names:
                slots.errors[names[number % len(names)]] = ValueError("a defect")
                admission.serve_waiting()
            await asyncio.sleep(0)
        slots.num_free = 1_000
        admission.serve_waiting()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert admission.num_waiting == 0
        assert len(slots.placed) == len(set(slots.placed))
        for name, result in zip(tasks, results, strict=True):
            is_known = isinstance(result, asyncio.CancelledError | ValueError)
            assert is_known or (isinstance(result, Lease) and name in slots.placed)

    asyncio.run(scenario())


def test_all_who_wait_may_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when their connection ends: the loop does nothing else until each is out of the queue."""
    compared: list[str] = []
    num = 256

    def counted(name: str) -> Any:
        compare = getattr(Waiter, name)

        def count(one: Waiter, other: Waiter) -> Any:
            compared.append(name)
            return compare(one, other)

        return count

    async def scenario() -> None:
        admission = queue_of(Slots(), max_waiting=num)
        tasks = await waiting(admission, *map(str, range(num)))
        for name in ("__lt__", "__eq__"):
            monkeypatch.setattr(Waiter, name, counted(name))
        for task in reversed(tasks.values()):
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert admission.num_waiting == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert len(compared) < 20 * num  # some log2(num) each
