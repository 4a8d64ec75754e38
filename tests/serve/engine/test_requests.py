"""What becomes of requests: how answers end, what they leave, and who is hurt by whom."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fixtures import Answer, Blocker, generate, mixed_requests, opened
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.engine import cycle
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine
from trt_mtp.serve.engine.sequence import Sequence
from trt_mtp.serve.engine.text import TextCodec

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
NUM_REQUESTS = 24


class Canceller:
    """Cancels its own request when it gets its chunk number `after`, counted from 1."""

    def __init__(self, after: int) -> None:
        self.answer, self.after = Answer(), after
        self.generation: Sequence | None = None
        self.is_submitted = threading.Event()

    def on_chunk(self, chunk: Chunk) -> None:
        """Called in the engine's thread, which waits for submit() to have returned."""
        self.answer.on_chunk(chunk)
        if len(self.answer.chunks) == self.after:
            assert self.is_submitted.wait(10)
            assert self.generation is not None
            self.generation.cancel()

    def submit(self, engine: CpuEngine, request: Request) -> None:
        """Start."""
        self.generation = engine.submit(request, self.on_chunk)
        self.is_submitted.set()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Mixed lengths, greedy and sampled."""
    half = NUM_REQUESTS // 2
    greedy = mixed_requests(half, 320, greedy=True)
    return greedy + mixed_requests(half, 320, greedy=False)


@pytest.fixture(scope="module")
def alone(drafting: Path, requests: list[Request]) -> list[list[int]]:
    """The answer to each of `requests`, each in an engine of its own without drafts."""
    tokens = []
    for request in requests:
        with opened(drafting, 0, max_batch_size=1) as engine:
            tokens += [answer.tokens for answer in generate(engine, [request])]
    return tokens


@settings(max_examples=25)
@given(
    schedule=st.lists(
        st.tuples(st.integers(0, NUM_REQUESTS - 1), st.sampled_from([0, 0, 1, 2, 5])),
        min_size=1,
        max_size=8,
    )
)
def test_no_request_leaves_a_trace(
    used_engine: CpuEngine,
    requests: list[Request],
    alone: list[list[int]],
    schedule: list[tuple[int, int]],
) -> None:
    """Whatever ran before or beside it, cancelled or not, a request gets its own answer."""
    cancellers = []
    for index, after in schedule:
        canceller = Canceller(after)
        canceller.submit(used_engine, requests[index])
        cancellers.append(canceller)
    for (index, after), canceller in zip(schedule, cancellers, strict=True):
        answer = canceller.answer.wait()
        if answer.last.finish_reason == "cancelled":
            assert 0 < after < len(answer.chunks) <= after + 2
            assert answer.tokens == alone[index][: len(answer.tokens)]
        else:
            assert answer.tokens == alone[index]


@pytest.fixture(scope="module")
def used_engine(drafting: Path) -> Iterator[CpuEngine]:
    """An engine of two slots for all examples, which follow each other in it."""
    with opened(drafting, 2, max_batch_size=2) as engine:
        yield engine


def test_max_tokens_ends_an_answer(drafting: Path) -> None:
    """An answer has max_tokens tokens, also when the last step drafted past them."""
    with opened(drafting, 5) as engine:
        requests = [
            Request((5, 6), SamplingParams(max_tokens=n, ignore_eos=True)) for n in range(1, 20)
        ]
        for request, answer in zip(requests, generate(engine, requests), strict=True):
            assert len(answer.tokens) == request.sampling.max_tokens
            assert answer.last.finish_reason == "length"
            assert answer.last.error == ""


def test_the_longest_request_that_fits_runs(drafting: Path) -> None:
    """Prompt and answer may fill max_seq_len to the last token, drafts reaching past it."""
    prompt = tuple(range(3, 59))
    expected: list[int] = []
    for k in (0, 5):
        with opened(drafting, k) as engine:
            (answer,) = generate(engine, [Request(prompt, LONG)])
        assert len(answer.tokens) == LONG.max_tokens
        expected = expected or answer.tokens
        assert answer.tokens == expected


def test_an_end_token_ends_an_answer(drafting: Path, requests: list[Request]) -> None:
    """The end token is the last one, counted, not part of the text; ignore_eos goes past it."""
    eos_ids = TextCodec(drafting).eos_ids
    assert eos_ids == {0, 2}
    start = next(token for token in range(3, 320) if follows(drafting, token) & eos_ids)
    with opened(drafting, 2) as engine:
        stopped, ignored = generate(
            engine,
            [Request((start,), SamplingParams(max_tokens=60, ignore_eos=i)) for i in (False, True)],
        )
    assert stopped.last.finish_reason == "stop"
    assert stopped.tokens[-1] in eos_ids
    assert not eos_ids & set(stopped.tokens[:-1])
    assert ignored.last.finish_reason == "length"
    assert ignored.tokens[: len(stopped.tokens)] == stopped.tokens
    assert ignored.text.startswith(stopped.text)


def test_an_end_token_is_held_back(drafting: Path) -> None:
    """The first min_tokens tokens are none that ends an answer, and the same at every length."""
    eos_ids = TextCodec(drafting).eos_ids
    start = next(token for token in range(3, 320) if follows(drafting, token) & eos_ids)
    answers: dict[int, list[tuple[list[int], str | None]]] = {}
    for draft_length in (0, 1, 3, 5):
        with opened(drafting, draft_length) as engine:
            [plain] = generate(engine, [Request((start,), SamplingParams(max_tokens=60))])
            length = len(plain.tokens)
            requests = [
                Request((start,), SamplingParams(max_tokens=60, min_tokens=least, temperature=heat))
                for least in (length - 1, length, 60)
                for heat in (0.0, 1.0)
            ]
            found = generate(engine, requests)
        answers[draft_length] = [(answer.tokens, answer.last.finish_reason) for answer in found]
        for request, answer in zip(requests, found, strict=True):
            least = request.sampling.min_tokens
            assert len(answer.tokens) >= least
            assert not eos_ids & set(answer.tokens[:least])
    unheld, held, whole = (answers[0][at] for at in (0, 2, 4))
    assert unheld == (plain.tokens, "stop")
    assert held[0][: length - 1] == plain.tokens[:-1]
    assert held[0][length - 1] not in eos_ids
    assert whole[1] == "length"
    assert all(answers[0] == others for others in answers.values())


def follows(folder: Path, token: int) -> set[int]:
    """The greedy answer to one token, as a set."""
    with opened(folder, 0, max_batch_size=1) as engine:
        sampling = SamplingParams(max_tokens=60, ignore_eos=True)
        return set(generate(engine, [Request((token,), sampling)])[0].tokens)


@pytest.mark.parametrize("draft_length", [0, 3])
def test_a_stop_text_ends_an_answer(drafting: Path, draft_length: int) -> None:
    """The text ends before the stop text, the tokens with the one that completed it."""
    prompt = (40, 41)
    with opened(drafting, draft_length) as engine:
        (whole,) = generate(engine, [Request(prompt, LONG)])
        stop = re.findall("[a-z]{3}", whole.text[20:])[0]
        sampling = SamplingParams(max_tokens=200, ignore_eos=True, stop=("\x00never", stop))
        (answer,) = generate(engine, [Request(prompt, sampling)])
    assert answer.last.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.tokens == whole.tokens[: len(answer.tokens)]
    assert stop in engine.codec.tokenizer.decode(answer.tokens)
    assert stop not in engine.codec.tokenizer.decode(answer.tokens[:-1])


@pytest.mark.parametrize("draft_length", [0, 3])
def test_text_that_may_begin_a_stop_text_is_not_lost(drafting: Path, draft_length: int) -> None:
    """An answer that ends in the middle of a stop text still has all its text."""
    sampling = SamplingParams(max_tokens=20, ignore_eos=True)
    with opened(drafting, draft_length) as engine:
        (whole,) = generate(engine, [Request((40,), sampling)])
        stop = whole.text[-3:] + "\x00"
        sampling = SamplingParams(max_tokens=20, ignore_eos=True, stop=(stop,))
        (answer,) = generate(engine, [Request((40,), sampling)])
    assert answer.text == whole.text
    assert answer.last.finish_reason == "length"


@pytest.mark.parametrize("draft_length", [0, 3])
def test_cancelling_takes_effect_within_one_step(drafting: Path, draft_length: int) -> None:
    """After cancel() at most one more step has tokens; then comes the last chunk."""
    with opened(drafting, draft_length) as engine:
        for after in (1, 4):
            canceller = Canceller(after)
            canceller.submit(engine, Request((5, 6, 7), LONG))
            answer = canceller.answer.wait()
            assert answer.last.finish_reason == "cancelled"
            assert len(answer.chunks) <= after + 2
            assert answer.last.num_output_tokens == len(answer.tokens)
        wait_until_idle(engine)


def test_cancelling_during_a_long_prompt(drafting: Path) -> None:
    """A request that is cancelled when a piece of its prompt was run gives no token."""
    with opened(drafting, 2) as engine:
        blocked, answer, generations = Blocker(), Answer(), list[Sequence]()

        def on_chunk(chunk: Chunk) -> None:
            blocked.on_chunk(chunk)
            if engine.statistics().num_running == 2:  # a piece of the other one's prompt was run
                generations[0].cancel()

        engine.submit(Request((5,), LONG), on_chunk)
        assert blocked.is_entered.wait(10)
        prompt, sampling = (7,) * 200, SamplingParams(max_tokens=9)
        generations.append(engine.submit(Request(prompt, sampling), answer.on_chunk))
        blocked.go_on.set()
        assert answer.wait().tokens == []
        assert 0 < generations[0].num_prefilled < len(prompt)
    assert answer.last.finish_reason == "cancelled"


def test_cancelling_while_waiting(drafting: Path) -> None:
    """A request cancelled before it got a slot ends without tokens; those beside it go on."""
    with opened(drafting, 2, max_batch_size=1) as engine:
        blocked = Blocker()
        engine.submit(Request((5,), SamplingParams(max_tokens=9)), blocked.on_chunk)
        assert blocked.is_entered.wait(10)
        waiting = [Answer() for _ in range(3)]
        request = Request((9, 9), SamplingParams(max_tokens=5, ignore_eos=True))
        generations = [engine.submit(request, answer.on_chunk) for answer in waiting]
        statistics = engine.statistics()
        assert (statistics.num_running, statistics.num_waiting) == (1, 3)
        generations[1].cancel()
        blocked.go_on.set()
        first, second, third = (answer.wait() for answer in waiting)
        assert second.last.finish_reason == "cancelled"
        assert second.chunks == [second.last]
        assert first.tokens == third.tokens
        assert len(first.tokens) == 5
        generations[1].cancel()  # too late, and harmless
        wait_until_idle(engine)


def wait_until_idle(engine: CpuEngine) -> None:
    """Assert that the engine ends with nothing in flight: one more request goes through."""
    generate(engine, [Request((3,), SamplingParams(max_tokens=1))])
    statistics = engine.statistics()
    assert (statistics.num_running, statistics.num_waiting) == (0, 0)


def test_more_requests_than_slots(
    drafting: Path, requests: list[Request], alone: list[list[int]]
) -> None:
    """Requests beyond the slots wait, and all get their answers; statistics add up."""
    with opened(drafting, 3, max_batch_size=2) as engine:
        answers = generate(engine, requests)
        assert [answer.tokens for answer in answers] == alone
        statistics = engine.statistics()
    assert statistics.num_requests == len(requests)
    assert (statistics.num_running, statistics.num_waiting) == (0, 0)
    assert statistics.num_output_tokens == sum(len(tokens) for tokens in alone)
    counters = [answer.last.counters for answer in answers]
    assert statistics.num_steps == sum(c.num_steps for c in counters)
    assert statistics.num_draft_tokens == sum(c.num_draft_tokens for c in counters)
    num_accepted = sum(c.num_accepted_draft_tokens for c in counters)
    assert statistics.num_accepted_draft_tokens == num_accepted


@pytest.mark.parametrize("first_error", [1, 2])
def test_a_receiver_that_fails_hurts_nobody_else(
    drafting: Path, requests: list[Request], alone: list[list[int]], first_error: int
) -> None:
    """A request whose on_chunk raises is dropped; the others get their answers."""
    calls = []

    def fail(chunk: Chunk) -> None:
        calls.append(chunk)
        if len(calls) >= first_error:
            raise RuntimeError("receiver is gone")

    with opened(drafting, 2, max_batch_size=2) as engine:
        engine.submit(Request((5, 6), LONG), fail)
        answers = generate(engine, requests[:4])
        assert [answer.tokens for answer in answers] == alone[:4]
        wait_until_idle(engine)
    assert len(calls) <= first_error + 2


def test_closing_ends_every_answer(drafting: Path) -> None:
    """close() ends running and waiting requests as cancelled, at once; nothing may follow."""
    with opened(drafting, 2, max_batch_size=2) as engine:
        answers = [Answer() for _ in range(5)]
        for answer in answers:
            engine.submit(Request((5, 6), LONG), answer.on_chunk)
        engine.close()
        assert all(answer.is_done.is_set() for answer in answers)
        assert {answer.last.finish_reason for answer in answers} <= {"cancelled", "length"}
        assert answers[-1].last.finish_reason == "cancelled"
        with pytest.raises(TrtMtpError, match="the engine is closed"):
            engine.submit(Request((5, 6)), Answer().on_chunk)
        engine.close()  # twice is fine


def test_an_engine_may_be_closed_by_a_receiver(drafting: Path) -> None:
    """close() within on_chunk doesn't wait for its own thread."""
    with opened(drafting, 1) as engine:
        answer = Answer()

        def close(chunk: Chunk) -> None:
            answer.on_chunk(chunk)
            engine.close()

        engine.submit(Request((5,), LONG), close)
        assert answer.wait().last.finish_reason == "cancelled"


def test_a_failure_in_the_engine_ends_requests_with_an_error(
    drafting: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a step fails, every answer ends with "error" and a sentence, later ones at submit()."""

    def broken(*_: object) -> None:
        raise MemoryError("no memory for the step")

    with opened(drafting, 1, max_batch_size=1) as engine:
        monkeypatch.setattr(cycle, "cycle", broken)
        answers = [Answer() for _ in range(3)]
        try:
            for answer in answers:
                engine.submit(Request((5,), LONG), answer.on_chunk)
        except TrtMtpError:  # it failed before the last ones came
            answers = answers[:1]
        for answer in answers:
            last = answer.wait().last
            assert last.finish_reason == "error"
            assert last.error == "the engine stopped: no memory for the step"
        with pytest.raises(TrtMtpError, match="the engine stopped: no memory"):
            engine.submit(Request((5,)), Answer().on_chunk)
    assert "the engine stopped" in caplog.text
