"""Speculation samples from the model's own distribution, by chi-square over 20,000 requests."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.engine_fixtures import generate, make_drafting_checkpoint, opened, pack
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.model import reference

NUM_REQUESTS = 20_000
AT_ONCE = 500
PROMPT = (11, 29, 5)
LENGTH = 3
TOP_K = 4
TEMPERATURE = 1.5
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "full_attention_interval": 2, "hidden_size": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint whose drafts are sometimes right."""
    return make_drafting_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", **SMALL)


def exact_distribution(checkpoint: Path) -> dict[tuple[int, ...], float]:
    """The probability of every answer of LENGTH tokens, from the torch reference's logits."""
    model = reference.load(checkpoint)
    probabilities: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        prefixes = list(probabilities)
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + prefix for prefix in prefixes]))[0][:, -1]
        top, ids = (logits.double() / TEMPERATURE).topk(TOP_K)
        probabilities = {
            (*prefix, int(ids[row, i])): probabilities[prefix] * float(top[row].softmax(-1)[i])
            for (row, prefix), i in product(enumerate(prefixes), range(TOP_K))
        }
    return probabilities


def request(seed: int) -> Request:
    """One of the requests; they differ in their seed alone."""
    return Request(
        PROMPT,
        SamplingParams(
            max_tokens=LENGTH, temperature=TEMPERATURE, top_k=TOP_K, seed=seed, ignore_eos=True
        ),
    )


@pytest.mark.parametrize("draft_length", [0, 2])
def test_answers_have_the_distribution_of_the_model(checkpoint: Path, draft_length: int) -> None:
    """Over 20,000 seeds, answers of three tokens fit their exact joint distribution."""
    expected = exact_distribution(checkpoint)
    counts: Counter[tuple[int, ...]] = Counter()
    packed = pack(checkpoint, checkpoint.with_name(f"packed{draft_length}"))
    with opened(packed, draft_length) as engine:
        for first in range(0, NUM_REQUESTS, AT_ONCE):
            requests = [request(seed) for seed in range(first, first + AT_ONCE)]
            counts.update(tuple(answer.tokens) for answer in generate(engine, requests))
        statistics = engine.statistics()
    assert not counts.keys() - expected.keys()
    goal = np.array([expected[tokens] for tokens in expected]) * NUM_REQUESTS
    seen = np.array([counts[tokens] for tokens in expected])
    is_rare = goal < 5
    goals = np.append(goal[~is_rare], goal[is_rare].sum() + 1e-9)
    cells = np.append(seen[~is_rare], seen[is_rare].sum() + 1e-9)
    assert len(cells) > 20
    assert stats.chisquare(cells, goals * cells.sum() / goals.sum()).pvalue > 1e-4
    if draft_length:
        assert 0.1 < statistics.num_accepted_draft_tokens / statistics.num_draft_tokens < 0.9
