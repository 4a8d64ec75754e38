"""Drafts change when tokens come, never which: every draft length gives the same answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fixtures import (
    ASSET,
    Answer,
    Model,
    generate,
    mixed_requests,
    opened,
    pack,
)
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (1, 2, 3, 5)
PASSES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint, packed."""
    return pack(ASSET, tmp_path_factory.mktemp("asset") / "packed")


@pytest.fixture(scope="module")
def random_weights(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, packed."""
    return pack(checkpoint, tmp_path_factory.mktemp("random") / "packed")


@pytest.fixture(scope="module")
def model(drafting: Path) -> Model:
    """The forward passes of a small model."""
    return Model(drafting)


def asset_prompts() -> list[list[dict[str, object]]]:
    """The messages of 28 held-out prompts of the trained checkpoint, of all its tasks."""
    lines = (ASSET / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines[:: len(lines) // 28]][:28]


def answers_of(engine: CpuEngine, requests: Sequence[Request]) -> list[Answer]:
    """The answers, after checking what the counters of each say."""
    answers = generate(engine, requests)
    for answer in answers:
        counters, k = answer.last.counters, engine.draft_length
        accepted = counters.accepted_per_position
        assert len(answer.tokens) == answer.last.num_output_tokens
        assert answer.last.num_output_tokens == (
            1 + counters.num_steps + counters.num_accepted_draft_tokens
        )
        assert counters.num_draft_tokens == k * counters.num_steps
        assert len(accepted) == k
        assert sum(accepted) == counters.num_accepted_draft_tokens
        assert list(accepted) == sorted(accepted, reverse=True)
    return answers


def check_all_draft_lengths(folder: Path, requests: Sequence[Request]) -> list[float]:
    """Assert that answers equal those of draft length 0, one at a time and eight together.

    Returns the acceptance rate at each draft length.
    """
    with opened(folder, 0, max_batch_size=1) as engine:
        expected = answers_of(engine, requests)
    rates = []
    for k in DRAFT_LENGTHS:
        for max_batch_size in (1, 8):
            with opened(folder, k, max_batch_size) as engine:
                for plain, answer in zip(expected, answers_of(engine, requests), strict=True):
                    assert answer.tokens == plain.tokens
                    assert answer.text == plain.text
                    assert answer.last.finish_reason == plain.last.finish_reason
                totals = engine.statistics()
        rates.append(totals.num_accepted_draft_tokens / totals.num_draft_tokens)
    return rates


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_drafts_that_are_often_right_change_nothing(drafting: Path, greedy: bool) -> None:
    """100 prompts give the same tokens at K = 0, 1, 2, 3 and 5 while some drafts are accepted."""
    rates = check_all_draft_lengths(drafting, mixed_requests(100, 320, greedy=greedy))
    assert all(0.1 < rate < 0.95 for rate in rates)


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_drafts_that_are_wrong_change_nothing(random_weights: Path, greedy: bool) -> None:
    """24 prompts give the same tokens at every draft length when nearly no draft is accepted."""
    rates = check_all_draft_lengths(random_weights, mixed_requests(24, 320, greedy=greedy))
    assert all(rate < 0.1 for rate in rates)


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "sampled"])
def test_the_trained_checkpoint_answers_the_same_at_every_draft_length(
    asset: Path, temperature: float
) -> None:
    """The trained checkpoint's own prompts give the same answers with and without drafts."""
    with opened(asset, 0) as engine:
        prompts = [engine.encode_chat(messages) for messages in asset_prompts()]
    requests = [
        Request(prompt, SamplingParams(max_tokens=24, temperature=temperature, seed=i))
        for i, prompt in enumerate(prompts)
        if len(prompt) <= 200
    ]
    rates = check_all_draft_lengths(asset, requests)
    assert rates[0] > 0.3


@settings(max_examples=25, deadline=None)
@given(passes=PASSES, seed=st.integers(0, 1000))
def test_a_token_has_the_same_logits_in_every_pass(
    model: Model, passes: list[int], seed: int
) -> None:
    """Logits are equal bit for bit, however a sequence is cut into passes."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 320, sum(passes)).tolist()
    one_by_one = model.logits([(0, tokens)], [1] * len(tokens))
    assert np.array_equal(model.logits([(0, tokens)], passes), one_by_one)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_a_token_has_the_same_logits_beside_others(
    model: Model, lengths: list[int], seed: int
) -> None:
    """Logits are equal bit for bit whether a sequence is alone in a pass or with others."""
    rng = np.random.default_rng(seed)
    sequences = [(slot, rng.integers(0, 320, n).tolist()) for slot, n in enumerate(lengths)]
    together = model.logits(sequences, [sum(lengths)])
    alone = [model.logits([(0, tokens)], [len(tokens)]) for _, tokens in sequences]
    assert np.array_equal(together, np.concatenate(alone))
