"""What stands between vLLM and the one interface; vLLM itself runs in tests/vllm."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.serve.engine.base import Request, SamplingParams, SpeculationCounters
from trt_mtp.serve.engine.streamed import StreamedGeneration
from trt_mtp.serve.engine.text import AnswerText
from trt_mtp.serve.engine.vllm import counters_of, margin_of, sampling_params
from trt_mtp.serve.engine.vllm_plugin import expand

ENDS = frozenset({2, 9})


def generation(draft_length: int, steps: list[int], reported: Any = None) -> StreamedGeneration:
    """A request whose steps brought so many tokens each, after the prompt's one."""
    made = StreamedGeneration(
        Request((1,)), lambda chunk: None, cast(AnswerText, None),
        cast(asyncio.AbstractEventLoop, None), draft_length,
    )  # fmt: skip
    made.num_tokens = 1 + sum(steps)
    for step in steps:
        made.count_step(step)
    made.output = reported
    return made


def reported(draft_length: int, accepted: list[int], drafted: int | None = None) -> Any:
    """vLLM's own count at the end of a request."""
    return SimpleNamespace(
        histogram=[accepted.count(number) for number in range(draft_length + 1)],
        num_draft_tokens=draft_length * len(accepted) if drafted is None else drafted,
        per_step_accepted=accepted,
    )


def test_greedy_decoding_asks_for_nothing_else() -> None:
    """Without a temperature no seed and no cut is passed on; ends are named by their ids."""
    wanted = sampling_params(SamplingParams(20, seed=7, top_k=3), 5, ENDS, False)
    assert wanted == {
        "max_tokens": 15, "ignore_eos": False, "stop_token_ids": [2, 9], "detokenize": False,
        "temperature": 0.0,
    }  # fmt: skip


@given(st.integers(0, 2**64 - 1))
def test_every_seed_is_one_of_theirs(seed: int) -> None:
    """vLLM's seeds are signed, ours are not."""
    sampling = SamplingParams(20, 0.8, 3, 0.9, seed, ignore_eos=True)
    wanted = sampling_params(sampling, 0, ENDS, True)
    assert 0 <= wanted["seed"] < 2**63
    assert (wanted["stop_token_ids"], wanted["logprobs"]) == ([], 2)
    assert (wanted["top_k"], wanted["top_p"]) == (3, 0.9)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_steps_are_counted_as_they_come_and_as_vllm_reports_them(accepted: list[int]) -> None:
    """Both ways give the same counters, where no two steps came together."""
    steps = [number + 1 for number in accepted]
    seen = counters_of(generation(3, steps), False)
    told = counters_of(generation(3, steps, reported(3, accepted)), False, "length")
    assert seen.accepted_per_position == told.accepted_per_position
    assert (seen.num_steps, seen.num_draft_tokens) == (told.num_steps, told.num_draft_tokens)
    assert seen.num_accepted_draft_tokens == told.num_accepted_draft_tokens == sum(accepted)
    assert told.cut_after == (accepted[-1] if accepted[-1] < 3 else -1)


def test_steps_that_came_together_are_parted_at_the_end() -> None:
    """A slow reader gets several steps in one result; the last one's own length is reported."""
    merged = generation(3, [8], reported(3, [3, 2, 0]))
    assert counters_of(merged, False, "length") == SpeculationCounters(3, 9, 5, (2, 2, 1), 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 3))
def test_what_is_accepted_beyond_the_end_is_left_out(accepted: list[int], beyond: int) -> None:
    """Every token but the first is a step's own or an accepted draft, however an answer ends."""
    beyond = min(beyond, accepted[-1])
    steps = [number + 1 for number in accepted]
    steps[-1] -= beyond
    ended = counters_of(generation(3, steps, reported(3, accepted)), False, "stop")
    assert ended.num_steps + ended.num_accepted_draft_tokens == sum(steps)
    assert sum(ended.accepted_per_position) == ended.num_accepted_draft_tokens
    assert ended.cut_after == (steps[-1] - 1 if steps[-1] < 4 else -1)


def test_under_a_schedule_only_what_is_certain() -> None:
    """Steps that drafted less than they may have no positions; while it runs, no drafts."""
    running = generation(3, [2, 1])
    assert counters_of(running, True) == SpeculationCounters(2)
    ended = generation(3, [2, 1], reported(3, [1, 0], drafted=4))
    assert counters_of(ended, True, "length") == SpeculationCounters(2, 4, 1)


def test_without_drafts_every_token_is_a_step() -> None:
    """But the first, which is the prompt's."""
    assert counters_of(generation(0, [1, 1, 1]), False, "stop") == SpeculationCounters(3)


def test_the_margin_is_that_of_the_two_best() -> None:
    """vLLM adds the drawn token to the best ones; it may be any of them."""
    entries = {5: -1.5, 6: -0.25, 7: -3.0}
    logprobs = [{token: SimpleNamespace(logprob=value) for token, value in entries.items()}]
    assert margin_of(SimpleNamespace(logprobs=logprobs)) == 1.25
    assert margin_of(SimpleNamespace(logprobs=None)) is None


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.7, 1.0, 5.0]), st.integers(0, 4)), min_size=1),
    st.sampled_from([(0.0, 1.0), (-1.0, 2.0)]),
)
def test_each_draft_has_the_value_of_its_request(
    requests: list[tuple[float, int]], replaced: tuple[float, float]
) -> None:
    """The mended kernel spreads values over drafts, fractions and replacements included."""
    old, new = replaced
    expected = [new if value == old else value for value, count in requests for _ in range(count)]
    output = torch.full((len(expected) + 1,), 99.0)
    ends = torch.tensor([count for _, count in requests], dtype=torch.int32).cumsum(0)
    expand(output, torch.tensor([value for value, _ in requests]), ends, old, new)
    torch.testing.assert_close(output, torch.tensor([*expected, 99.0]))
