"""What servers tell of drafts, in the form of each."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.openai.counters import (
    ACCEPTED,
    DRAFTS,
    parse_counters,
    survival_between,
    with_survival,
)
from trt_mtp.controller.calibrate.openai.speculation import (
    Speculation,
    Told,
    speculation_of,
    spread,
    survival_of,
    told,
)

COUNTS = {"num_spec_steps": 20, "num_accepted_draft_tokens": 30, "num_draft_tokens": 60}
TRTLLM = {"num_spec_steps": 20, "total_accepted_draft_tokens": 30, "total_draft_tokens": 60}
HISTOGRAM = {"acceptance_histogram": [8, 0, 6, 6]}  # 8 steps accepted none, 6 two, 6 three
POSITIONS = (12, 12, 6)
INFO = {"spec_verify_ct": 20, "spec_num_correct_drafts": 30, "spec_num_proposed_drafts": 60}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
KEYS = (
    "metrics",
    "speculative_decoding",
    "acceptance_histogram",
    "num_spec_steps",
    "choices",
    "meta_info",
    "timings",
    "spec_verify_ct",
    "spec_accept_histogram",
    "draft_n",
    "draft_n_accepted",
    "avg_decoded_tokens_per_iter",
)


def choice(**values: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": 0, "delta": {}, **values}]}


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [], "metrics": {"speculative_decoding": {**COUNTS, **HISTOGRAM}}},
        {"metrics": {"speculative_decoding": {
            **COUNTS, "acceptance_histogram": {"0": 8, "2": 6, "3": 6}, "num_spec_tokens": 3}}},
        choice(finish_reason="stop", speculative_decoding={**TRTLLM, **HISTOGRAM}),
        choice(meta_info={**INFO, "spec_correct_drafts_histogram": [8, 0, 6, 6]}),
        choice(meta_info={**INFO, "spec_accept_histogram": [8, 0, 6, 6]}),
    ],
    ids=["vllm", "vllm's keys", "tensorrt_llm", "sglang", "sglang's older name"],
)  # fmt: skip
def test_a_histogram_gives_the_positions(chunk: dict[str, Any]) -> None:
    """Whatever it is called and wherever it stands, the counts are the same."""
    found = told(chunk)
    assert found is not None
    assert speculation_of(found, 51, 3) == Speculation(20, POSITIONS)


@pytest.mark.parametrize(
    "chunk",
    [
        {"timings": {"draft_n": 60, "draft_n_accepted": 30, "predicted_n": 51}},
        choice(avg_decoded_tokens_per_iter=2.5),
        choice(meta_info=INFO),
        choice(meta_info={"spec_verify_ct": 20}),
        {"metrics": {"speculative_decoding": {**COUNTS, "acceptance_histogram": [1, 2]}}},
    ],
    ids=["llama.cpp", "tensorrt_llm's mean", "sglang", "sglang's steps", "contradictory"],
)
def test_a_sum_is_spread_over_the_positions(chunk: dict[str, Any]) -> None:
    """Without positions the sums still hold, and the answer says that they were spread."""
    found = told(chunk)
    assert found is not None
    known = speculation_of(found, 51, 3)
    assert known is not None
    assert (known.num_steps, sum(known.accepted_per_position), known.is_spread) == (20, 30, True)


def test_what_tells_nothing_is_nothing() -> None:
    """Answers without drafts, and blocks without steps, tell nothing."""
    for chunk in (
        {},
        {"timings": {"predicted_n": 5}},
        {"metrics": None},
        choice(meta_info={"id": "x"}),
        choice(meta_info={"spec_accept_histogram": [0] * 10**6}),
        {"metrics": {"speculative_decoding": {**HISTOGRAM, "num_spec_steps": 0}}},
    ):
        assert told(chunk) is None
    assert speculation_of(Told(), 51, 3) is None
    assert speculation_of(Told(num_accepted=3, num_drafted=6), 1, 3) is None


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), ANY_JSON | st.dictionaries(st.sampled_from(KEYS), ANY_JSON)
    )
)
def test_no_chunk_is_too_odd(values: dict[str, Any]) -> None:
    """Whatever stands where counts should: no exception, and counts that can be."""
    for chunk in (values, {"choices": [values]}, {"metrics": {"speculative_decoding": values}}):
        found = told(chunk)
        known = speculation_of(found, 51, None) if found else None
        if known is not None:
            counts = known.accepted_per_position
            assert list(counts) == sorted(counts, reverse=True)
            assert all(0 <= count <= known.num_steps for count in counts)


@given(st.integers(0, 300), st.integers(1, 100), st.integers(1, 8))
def test_a_spread_keeps_the_sum(accepted: int, steps: int, depth: int) -> None:
    """Positions sum to what was accepted, fall, and are no more than the steps."""
    counts = spread(accepted, steps, depth)
    assert sum(counts) == min(accepted, steps * depth)
    assert list(counts) == sorted(counts, reverse=True)
    assert len(counts) == depth
    assert counts[0] <= steps


@given(st.floats(0, 8), st.integers(1, 8))
def test_survival_has_the_mean(mean: float, depth: int) -> None:
    """S_1 … S_K sum to the mean acceptance, and fall."""
    survival = survival_of(mean, depth)
    assert sum(survival) == pytest.approx(min(mean, depth), abs=1e-6)
    assert all(a >= b - 1e-9 for a, b in pairwise(survival))


VLLM = """# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 20.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 14.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="2"} 6.0
"""
SGLANG = """sglang:spec_verify_calls_total{tp_rank="0"} 20.0
sglang:generation_tokens_total{is_streaming="true"} 55
sglang:num_requests_total{is_streaming="true"} 5
"""
TRTLLM_METRICS = """trtllm_spec_decode_num_draft_tokens_total{model_name="m"} 6e+01 1700000000000
trtllm_spec_decode_num_accepted_tokens_total{model_name="m"} 30.0
"""


def test_counters_tell_a_batchs_acceptance() -> None:
    """Each kind's counters; those of positions as they are, else spread. Rubbish is skipped."""
    vllm = parse_counters(VLLM)
    assert survival_between({}, vllm, 3) == (0.7, 0.5, 0.3)
    assert survival_between({}, vllm, None) == (0.7, 0.5, 0.3)
    assert survival_between(vllm, vllm, 3) == ()
    llama = parse_counters(VLLM.replace("vllm:", "llamacpp:").replace('engine="0",', ""))
    assert survival_between({}, llama, 3) == (0.7, 0.5, 0.3)
    for text in (SGLANG, TRTLLM_METRICS):
        found = survival_between({}, parse_counters(text), 3)
        assert sum(found) == pytest.approx(1.5)
    assert survival_between({}, parse_counters(TRTLLM_METRICS), None) == ()
    assert parse_counters("<html>\nname{ 3\nx 1e\n\n") == {}
    huge = f"vllm:{DRAFTS} 1e-320\nvllm:{ACCEPTED} 1e999\nvllm:{ACCEPTED} 1e17\n"
    assert survival_between({}, parse_counters(huge), None) == ()


@given(st.text(max_size=80))
def test_no_metrics_are_too_odd(text: str) -> None:
    """Any text has counters, or none."""
    assert survival_between({}, parse_counters(f"{VLLM}{text}"), 3) != ()
    parse_counters(text)


def test_an_answer_gets_its_batchs_acceptance() -> None:
    """Steps and positions follow from the tokens; an error stays one."""
    answer = with_survival(Answer(num_output_tokens=51), (0.7, 0.5, 0.3))
    assert (answer.num_steps, answer.accepted_per_position) == (20, (14, 10, 6))
    assert with_survival(Answer(error="x"), (0.7,)) == Answer(error="x")
