"""The request path without a server: each answer comes once, and every place is given back."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.controller.gateway.request_path import Path
from tests.lease_fixtures import NUM_TOKENS, BackendDouble, Script, call_of
from trt_mtp.controller.gateway.call import MAX_FRUITLESS, MAX_HUNG, InferenceCall
from trt_mtp.controller.gateway.failure import (
    AnswerError,
    LimitError,
    WrongRequestError,
    status_of,
)
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.outcome import outcome_problem
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.errors import TrtMtpError


@dataclass
class CallerDouble:
    """Counts what quotas are held."""

    error: Exception | None = None
    charged: list[int] = field(default_factory=list)
    owner: str = "one"

    @contextlib.contextmanager
    def quota(self, features: RequestFeatures, num_tokens: Callable[[], int]) -> Iterator[None]:
        """As a tenant's."""
        if self.error is not None:
            raise self.error
        try:
            yield
        finally:
            self.charged.append(num_tokens())


def texts(messages: list[bytes]) -> list[str]:
    """The texts that a client was sent, without empty ones."""
    found = []
    for raw in messages:
        infer = pb.ModelStreamInferResponse.FromString(raw).infer_response
        for output, content in zip(infer.outputs, infer.raw_output_contents, strict=True):
            if output.name == "text_output" and content[4:]:
                found.append(content[4:].decode())
    return found


async def answered(path: Path, call: InferenceCall) -> list[bytes]:
    """All messages of an answer."""
    got: list[bytes] = []

    async def send(raw: bytes) -> None:
        got.append(raw)

    async with asyncio.timeout(60):
        await path.proxy.handle(call, send)
    return got


WHOLE = [f"w{index}" for index in range(NUM_TOKENS)]
scripts = st.lists(
    st.builds(
        Script, st.integers(0, 3), st.sampled_from(["final", "late", "lost", "hung", "error"])
    ),
    max_size=5,
)


@given(scripts, scripts, st.booleans())
@example([Script(2, "lost")], [Script(1, "hung"), Script(0, "error")], True)
def test_an_answer_comes_once_or_ends_in_a_sentence(
    first: list[Script], second: list[Script], is_guided: bool
) -> None:
    """Whatever attempts do: each token once and in order, counted once, every place given back."""

    async def scenario() -> None:
        path = Path(BackendDouble(first), BackendDouble(second), max_batch_size=8)
        caller: Any = CallerDouble()
        call = call_of("r", caller=caller, is_guided=is_guided)
        got: list[bytes] = []

        async def send(raw: bytes) -> None:
            got.append(raw)

        try:
            await path.proxy.handle(call, send)
            ended, expected = "num_finished", WHOLE
        except AnswerError:
            ended, expected = "num_failed", WHOLE[: len(texts(got))]
        assert texts(got) == expected
        counts = path.counts()
        assert counts == {**dict.fromkeys(counts, 0), "num_requests": 1, ended: 1}
        assert (
            len(path.closed)
            == len(set(map(id, path.closed)))
            == len(call.failed_variants) + (ended == "num_finished")
        )
        assert caller.charged == [len(texts(got))]
        await path.check_idle()

    asyncio.run(scenario())


def test_a_variant_that_failed_is_asked_last() -> None:
    """The other server comes first, then whatever is left; the attempts that give nothing end."""

    async def scenario() -> None:
        broken = [Script(0, "error")] * 5
        path = Path(BackendDouble(broken), BackendDouble(broken), max_batch_size=8)
        call = call_of()
        with pytest.raises(AnswerError, match="internal error: it broke"):
            await answered(path, call)
        keys = [replica.key for replica in call.failed_variants]
        assert len(keys) == MAX_FRUITLESS
        assert {key.partition("@")[2] for key in keys[:2]} == set(path.pool.backends)
        await path.check_idle()

    asyncio.run(scenario())


def test_what_hangs_two_variants_goes_to_no_third() -> None:
    """It gets a sentence, and neither variant is left alone for it; others are answered."""

    async def scenario() -> None:
        silent = [Script(0, "hung")] * 5
        path = Path(BackendDouble(silent), BackendDouble(silent), max_batch_size=8)
        call = call_of()
        with pytest.raises(AnswerError, match="sent nothing for too long"):
            await answered(path, call)
        assert len(call.failed_variants) == len(set(call.failed_variants)) == MAX_HUNG
        assert not any(replica.health.is_ejected for replica in path.pool.variants.values())
        for server in path.servers:
            server.scripts.clear()
        assert texts(await answered(path, call_of())) == WHOLE
        await path.check_idle()

    asyncio.run(scenario())


def test_a_hang_that_another_variant_does_not_share_ejects() -> None:
    """The answer from elsewhere is the evidence, which is there with its first token."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble([Script(0, "hung")]), max_batch_size=8)
        call = call_of()
        assert texts(await answered(path, call)) == WHOLE
        [hung] = call.failed_variants
        ejected = [r for r in path.pool.variants.values() if r.health.is_ejected]
        assert ejected == [hung]
        await path.check_idle()

    asyncio.run(scenario())


def test_a_wrong_request_is_refused_and_no_fault_of_its_variant() -> None:
    """It is counted and logged as refused, not as failed; its caller pays nothing for it."""

    async def scenario() -> None:
        refusing = [Script(0, "refused")]
        path = Path(BackendDouble(refusing), BackendDouble(refusing), max_batch_size=8)
        caller: Any = CallerDouble()
        call = call_of(caller=caller)
        with pytest.raises(WrongRequestError, match=r"^max_tokens is 0$") as error:
            await answered(path, call)
        assert status_of(error.value).code is grpc.StatusCode.INVALID_ARGUMENT
        assert path.metrics.num_refused() == 1
        assert path.counts() == {**dict.fromkeys(path.counts(), 0), "num_requests": 1}
        [lease] = path.closed
        assert lease.outcome is not None
        assert lease.outcome.finish_reason == "refused"
        assert outcome_problem(lease.outcome) == "it was refused"
        assert caller.charged == [0]
        await path.check_idle()

    asyncio.run(scenario())


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_a_grammar_in_which_an_answer_gets_stuck_is_tried_once(num_tokens: int) -> None:
    """It would get stuck everywhere, and what retries there are is everybody's."""

    async def scenario() -> None:
        stuck = [Script(num_tokens, "stuck")] * 2
        path = Path(BackendDouble(stuck), BackendDouble(stuck), max_batch_size=8)
        call = call_of(is_guided=True)
        with pytest.raises(WrongRequestError, match=r"^guided_decoding can't be followed: no text"):
            await answered(path, call)
        assert len(path.closed) == 1
        assert not any(variant.health.is_ejected for variant in path.pool.variants.values())
        await path.check_idle()

    asyncio.run(scenario())


def test_a_request_without_quota_is_refused_and_counted_so() -> None:
    """It takes no place."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)
        caller: Any = CallerDouble(LimitError("that is all", 1.0))
        with pytest.raises(LimitError):
            await answered(path, call_of(caller=caller))
        assert path.metrics.num_refused() == 1
        assert sum(path.counts().values()) == 0
        await path.check_idle()

    asyncio.run(scenario())


def test_an_observer_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Those after it are told, the answer is whole, the log says what was lost."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)

        def fail(lease: Lease) -> None:
            raise ValueError("a defect")

        path.router.observers.insert(0, fail)
        assert texts(await answered(path, call_of())) == WHOLE
        assert len(path.closed) == 1
        await path.check_idle()

    asyncio.run(scenario())
    assert "a defect" in caplog.text


def test_who_has_the_whole_answer_finds_it_counted() -> None:
    """The last message is sent after the place is free and the request counted."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)
        seen: list[tuple[int, int]] = []

        async def send(raw: bytes) -> None:
            running = sum(replica.num_running for replica in path.pool.variants.values())
            seen.append((path.counts()["num_finished"], running))

        await path.proxy.handle(call_of(), send)
        assert seen[0] == (0, 1)
        assert seen[-1] == (1, 0)
        await path.check_idle()

    asyncio.run(scenario())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 2))
def test_clients_that_leave_at_any_moment_hold_nothing(
    moments: list[int], max_batch_size: int
) -> None:
    """Waiting, placed or reading: those who stay are answered, and every place is given back."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size)
        stays = [asyncio.create_task(answered(path, call_of(f"s{n}"))) for n in range(5)]
        leaves = [asyncio.create_task(answered(path, call_of(f"l{n}"))) for n in moments]
        for at in range(max(moments) + 1):
            for moment, task in zip(moments, leaves, strict=True):
                if moment == at:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*leaves, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError | list) for r in results)
        for task in stays:
            assert texts(await task) == WHOLE
        await path.check_idle()

    asyncio.run(scenario())


def test_what_waits_is_served_after_the_end_that_freed_its_place() -> None:
    """Nobody is placed from inside another request's end."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=1)
        order: list[str] = []
        path.router.observers.append(lambda lease: order.append(f"end {lease.call.client_id}"))
        place = path.router.place

        def noted(call: InferenceCall) -> Lease | None:
            lease = place(call)
            order.append(f"{'place' if lease else 'wait'} {call.client_id}")
            return lease

        path.queue._try_place = noted
        calls = [call_of(f"{n}") for n in range(5)]  # four places
        await asyncio.gather(*(answered(path, call) for call in calls))
        first_end = next(index for index, what in enumerate(order) if what.startswith("end"))
        assert "place 4" in order[first_end + 1 :]
        await path.check_idle()

    asyncio.run(scenario())


def test_a_hint_is_kept_until_only_another_length_can_continue() -> None:
    """Then the answer continues there, because it is the same at any length."""

    async def scenario() -> None:
        path = Path(BackendDouble([Script(2, "lost")]), BackendDouble([Script(1, "lost")]), 8)
        call = call_of(hint=3)
        assert texts(await answered(path, call)) == WHOLE
        lengths = [replica.draft_length for replica in call.failed_variants]
        assert lengths == [3, 3]
        assert call.replica is not None
        assert call.replica.draft_length == 0
        await path.check_idle()

    asyncio.run(scenario())


def test_a_prompt_that_few_variants_hold_is_in_nobodys_way() -> None:
    """It waits for one that holds it, while shorter ones go where there is room."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=1)
        small = [r for r in path.pool.variants.values() if r.draft_length == 3]
        for replica in small:
            replica.max_seq_len = 100
        for backend in path.pool.backends.values():
            backend.variants = dict(backend.variants)  # as they are
        for replica in path.pool.variants.values():
            replica.num_running += replica.draft_length == 0
        long = call_of("long")
        long.features = replace(long.features, num_prompt_tokens=200)
        waits = asyncio.create_task(answered(path, long))
        await asyncio.sleep(0)
        assert path.queue.num_waiting == 1
        assert texts(await answered(path, call_of("short"))) == WHOLE
        for replica in path.pool.variants.values():
            replica.num_running -= replica.draft_length == 0
        assert texts(await waits) == WHOLE
        await path.check_idle()

    asyncio.run(scenario())


def test_a_length_that_is_not_ready_is_refused_at_once_while_others_are() -> None:
    """Nobody waits for it."""

    async def scenario() -> None:
        path = Path(BackendDouble(), BackendDouble(), max_batch_size=8)
        for replica in path.pool.variants.values():
            if replica.draft_length == 3:
                replica.health.suspect()
        with pytest.raises(TrtMtpError, match="is not healthy"):
            await answered(path, call_of(hint=3))
        await path.check_idle()

    asyncio.run(scenario())
