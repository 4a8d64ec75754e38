"""Log probabilities of an answer's tokens: right, and the same at every draft length."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_fixtures import ASSET, generate, opened, pack
from trt_mtp.serve.engine.base import Guided, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine
from trt_mtp.serve.engine.logprobs import place_logprobs

DRAFT_LENGTHS = (0, 1, 3)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, CpuEngine]]:
    """Variants of the trained checkpoint."""
    packed = pack(ASSET, tmp_path_factory.mktemp("logprobs") / "packed")
    with ExitStack() as stack:
        yield {k: stack.enter_context(opened(packed, k)) for k in DRAFT_LENGTHS}


@given(
    logits=st.lists(st.floats(-30, 30, width=32) | st.just(-math.inf), min_size=2, max_size=30),
    num_top=st.integers(0, 20),
    data=st.data(),
)
def test_they_are_those_of_the_softmax(logits: list[float], num_top: int, data: Any) -> None:
    """All of them together are 1; the best come first, each once, and none that may not come."""
    finite = [i for i, value in enumerate(logits) if value > -math.inf]
    if not finite:
        return
    token = data.draw(st.sampled_from(finite))
    row = np.array(logits, np.float32)
    place = place_logprobs(row, token, num_top, lambda index: str(index).encode())
    total = math.log(sum(math.exp(float(value)) for value in row))
    assert place.token.logprob == pytest.approx(float(row[token]) - total, abs=1e-9)
    best = sorted(finite, key=lambda i: (-row[i], i))[:num_top]
    assert [int(each.text) for each in place.top] == best
    whole = place_logprobs(row, token, len(logits), lambda index: str(index).encode())
    assert sum(math.exp(each.logprob) for each in whole.top) == pytest.approx(1.0)


@pytest.mark.parametrize("guided", [None, Guided("regex", "[A-Z][a-z]{1,9} [0-9]{2,4}")])
def test_they_are_equal_at_every_draft_length(
    engines: dict[int, CpuEngine], guided: Guided | None
) -> None:
    """To the last bit, for greedy and sampled answers, also where a grammar rules tokens out."""
    prompt = engines[0].encode("def fibonacci(n):")
    requests = [
        Request(
            prompt,
            SamplingParams(max_tokens=40, temperature=heat, seed=3),
            guided=guided,
            num_logprobs=4,
        )
        for heat in (0.0, 1.0)
    ]
    seen = []
    for k in DRAFT_LENGTHS:
        answers = generate(engines[k], requests)
        places = [[p for chunk in one.chunks for p in chunk.logprobs] for one in answers]
        seen.append(places)
        for answer, told in zip(answers, places, strict=True):
            assert len(told) == len(answer.tokens)
        assert all(place.top[0] == place.token for place in places[0])  # greedy
    assert seen[0] == seen[1] == seen[2]


def test_bytes_of_tokens_are_the_answers_bytes(engines: dict[int, CpuEngine]) -> None:
    """Parts of characters too: joined, they are the text; a special token's are its name."""
    codec = engines[0].codec
    text = "naïve 世界 \n\t🙂 x"
    assert b"".join(codec.token_bytes(token) for token in codec.encode(text)) == text.encode()
    special = codec.encode("<|im_end|>")
    assert [codec.token_bytes(token) for token in special] == [b"<|im_end|>"]


def test_nothing_is_told_that_is_not_asked_for(engines: dict[int, CpuEngine]) -> None:
    """An answer without them, and one with its own tokens' alone."""
    prompt = engines[0].encode("1, 2, 3,")
    sampling = SamplingParams(max_tokens=3)
    plain, own = generate(
        engines[3], [Request(prompt, sampling), Request(prompt, sampling, num_logprobs=0)]
    )
    assert all(chunk.logprobs == () for chunk in plain.chunks)
    assert [place.top for chunk in own.chunks for place in chunk.logprobs] == [(), (), ()]
