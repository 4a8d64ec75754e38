"""Frequency and presence penalties: right, and no matter for draft lengths or failovers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.engine_fixtures import ASSET, generate, opened, pack
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (0, 1, 3)
EVERY = 10_000  # more tokens than there are
PENALTIES = ((0.6, 0.0), (0.0, 1.5), (1.1, -0.7), (-2.0, 2.0))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, CpuEngine]]:
    """Variants of the trained checkpoint."""
    packed = pack(ASSET, tmp_path_factory.mktemp("penalties") / "packed")
    with ExitStack() as stack:
        yield {k: stack.enter_context(opened(packed, k)) for k in DRAFT_LENGTHS}


def request_of(engine: CpuEngine, frequency: float, presence: float, heat: float = 0.0) -> Request:
    """A request whose answer would repeat itself."""
    sampling = SamplingParams(
        max_tokens=48,
        temperature=heat,
        seed=7,
        ignore_eos=True,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    prompt = engine.encode("1, 1, 1, 1, 1, 1, 1,")
    return Request(prompt, sampling)


@pytest.mark.parametrize(("frequency", "presence"), PENALTIES)
def test_answers_are_equal_at_every_draft_length(
    engines: dict[int, CpuEngine], frequency: float, presence: float
) -> None:
    """Greedy and sampled, and when another variant goes on in the middle."""
    seen = []
    for k in DRAFT_LENGTHS:
        requests = [request_of(engines[k], frequency, presence, heat) for heat in (0.0, 1.0)]
        seen.append([answer.tokens for answer in generate(engines[k], requests)])
    assert seen[0] == seen[1] == seen[2]
    for heat, whole in zip((0.0, 1.0), seen[0], strict=True):
        one = request_of(engines[3], frequency, presence, heat)
        rest = Request(one.prompt_ids, one.sampling, tuple(whole[:20]))
        [answer] = generate(engines[3], [rest])
        assert [*whole[:20], *answer.tokens] == whole


def test_they_are_openais_formula(engines: dict[int, CpuEngine]) -> None:
    """logit - frequency * count - presence * (count > 0), of the answer's tokens alone."""
    frequency, presence = 0.75, 0.5
    penalized = replace(request_of(engines[3], frequency, presence), num_logprobs=EVERY)
    [answer] = generate(engines[3], [penalized])
    places = [place for chunk in answer.chunks for place in chunk.logprobs]
    codec = engines[0].codec
    for at in (0, 1, 7, 30):
        before = answer.tokens[:at]
        plain = Request(
            penalized.prompt_ids,
            SamplingParams(max_tokens=at + 1, ignore_eos=True),
            tuple(before),
            num_logprobs=EVERY,
        )
        [bare] = generate(engines[0], [plain])
        free = {each.text: each.logprob for each in bare.chunks[0].logprobs[0].top}
        taken = {each.text: each.logprob for each in places[at].top}
        counts = {codec.token_bytes(token): count for token, count in Counter(before).items()}
        shift = next(
            taken[text] - free[text] for text in free if text not in counts and text in taken
        )
        for text, count in counts.items():
            expected = free[text] - frequency * count - presence + shift
            assert taken[text] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [2.1, -3.0, float("nan"), float("inf")])
def test_a_penalty_out_of_range_is_refused(
    engines: dict[int, CpuEngine], name: str, value: float
) -> None:
    """One sentence that names it."""
    changes: dict[str, Any] = {name: value}
    request = Request((1, 2), replace(SamplingParams(), **changes))
    with pytest.raises(InputError, match=f"{name} is .*; expected -2 to 2"):
        engines[0].submit(request, lambda chunk: None)
