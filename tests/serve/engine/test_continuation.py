"""An answer goes on in another variant exactly as it would have gone on in the first one."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.engine_fixtures import (
    Answer,
    generate,
    make_drafting_checkpoint,
    opened,
    pack,
)
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine
from trt_mtp.serve.engine.text import TextCodec, begin_answer

VERSE = "aé世b🙂c"
DRAFT_LENGTHS = (0, 1, 3, 5)
Engines = dict[int, CpuEngine]


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> TextCodec:
    """A byte-level tokenizer in which most characters are several tokens."""
    return TextCodec(checkpoint)


@pytest.fixture(scope="module")
def engines(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Variants whose greedy answers to VERSE's first token go on with the rest of VERSE."""
    folder = tmp_path_factory.mktemp("continuation")
    verse = codec.encode(VERSE)
    packed = pack(make_drafting_checkpoint(folder / "checkpoint", verse=verse), folder / "packed")
    with ExitStack() as stack:
        yield {k: stack.enter_context(opened(packed, k)) for k in DRAFT_LENGTHS}


def requests(codec: TextCodec) -> st.SearchStrategy[Request]:
    """Greedy and sampled, end tokens taken, ignored or held back, contexts past a prefill chunk."""
    max_tokens = st.shared(st.integers(1, 48), key="max_tokens")
    sampling = st.builds(
        SamplingParams,
        max_tokens=max_tokens,
        min_tokens=max_tokens.flatmap(lambda most: st.integers(0, most)),
        temperature=st.sampled_from([0.0, 0.7]),
        top_k=st.sampled_from([0, 20]),
        top_p=st.sampled_from([1.0, 0.9]),
        seed=st.integers(0, 2**64 - 1),
        ignore_eos=st.booleans(),
    )
    start = codec.encode(VERSE[0])
    prompts = st.lists(st.integers(3, 319), max_size=70).map(lambda ids: (*ids, *start))
    return st.builds(Request, prompts, sampling)


def ask(engine: CpuEngine, request: Request) -> Answer:
    """The whole answer."""
    return generate(engine, [request])[0]


@st.composite
def stop_texts(draw: st.DrawFn, text: str) -> tuple[str, ...]:
    """None, or a piece of `text` or of its end."""
    if not text or draw(st.booleans()):
        return ()
    start = draw(st.integers(0, len(text) - 1))
    return (text[start : start + draw(st.integers(1, 6))] + draw(st.sampled_from(["", "\0"])),)


@settings(max_examples=120)
@given(st.data(), st.sampled_from(DRAFT_LENGTHS), st.sampled_from(DRAFT_LENGTHS))
def test_another_variant_goes_on(
    engines: Engines, codec: TextCodec, data: st.DataObject, first: int, second: int
) -> None:
    """At every seam, what came before and what comes after are the undisturbed answer."""
    request = data.draw(requests(codec))
    stop = data.draw(stop_texts(ask(engines[0], request).text))
    request = replace(request, sampling=replace(request.sampling, stop=stop))
    whole = ask(engines[0], request)
    chunks = ask(engines[first], request).chunks
    seen = chunks[: data.draw(st.integers(0, len(chunks) - 1))]
    emitted = tuple(token for chunk in seen for token in chunk.token_ids)
    rest = ask(engines[second], replace(request, emitted_ids=emitted))
    assert [*emitted, *rest.tokens] == whole.tokens
    assert "".join(chunk.text for chunk in seen) + rest.text == whole.text
    assert rest.last.finish_reason == whole.last.finish_reason
    assert rest.last.num_output_tokens == whole.last.num_output_tokens
    counters = rest.last.counters
    assert len(rest.tokens) == 1 + counters.num_steps + counters.num_accepted_draft_tokens
    assert counters.num_draft_tokens == second * counters.num_steps


def test_every_seam_of_characters_and_a_stop_text(engines: Engines, codec: TextCodec) -> None:
    """A stop text of several-byte characters is found wherever the answer is cut in it."""
    prompt = codec.encode(VERSE[0])
    request = Request(prompt, SamplingParams(max_tokens=40, ignore_eos=True, stop=("b🙂c",)))
    whole = ask(engines[0], request)
    assert whole.text == "é世"
    for seam in range(1, len(whole.tokens)):
        for engine in engines.values():
            rest = ask(engine, replace(request, emitted_ids=tuple(whole.tokens[:seam])))
            assert rest.tokens == whole.tokens[seam:]
            assert rest.text == "".join(chunk.text for chunk in whole.chunks[seam:])
            assert rest.last.finish_reason == "stop"


@given(
    text=st.text(alphabet="ab🙂é", max_size=24),
    stop=st.lists(st.text(alphabet="ab🙂é", min_size=1, max_size=4), max_size=3).map(tuple),
    seam=st.integers(0, 60),
)
@example("aé", (), 2)
def test_text_goes_on_where_it_was_cut(
    codec: TextCodec, text: str, stop: tuple[str, ...], seam: int
) -> None:
    """Each token after the seam makes the same text final as without one."""
    ids = codec.encode(text)
    assume(seam <= len(ids))
    request = Request((5,), SamplingParams(max_tokens=100, stop=stop))
    answer, pieces = begin_answer(codec, request), list[tuple[str, bool]]()
    for token in ids:
        pieces.append(answer.push(token))
        if pieces[-1][1]:
            break
    assume(seam < len(pieces) or not any(is_stopped for _, is_stopped in pieces))
    cut = begin_answer(codec, replace(request, emitted_ids=ids[:seam]))
    assert [cut.push(token) for token in ids[seam : len(pieces)]] == pieces[seam:]
    assert cut.flush() == answer.flush()


@pytest.mark.parametrize(
    ("emitted", "sampling", "sentence"),
    [
        ((5,) * 8, {}, "emitted_ids has 8 tokens and max_tokens is 8; the answer is complete"),
        ((5,) * 9, {}, "emitted_ids has 9 tokens"),
        ((5, 2), {}, "the answer ended with token 2 of emitted_ids; it is complete"),
        ((320,), {}, "emitted_ids must lie between 0 and 319"),
        ((-1,), {}, "emitted_ids must lie between 0 and 319"),
        ((67, 67), {"stop": ("aa",)}, "the answer ended with token 2 of emitted_ids"),
    ],
)
def test_answers_that_were_over_are_refused(
    engines: Engines, emitted: tuple[int, ...], sampling: dict[str, object], sentence: str
) -> None:
    """An answer whose end was emitted can't go on, and its tokens must be tokens."""
    limits = replace(SamplingParams(max_tokens=8), **sampling)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=sentence):
        engines[3].submit(Request((5,), limits, emitted), Answer().on_chunk)


def test_an_end_token_that_is_ignored_may_have_been_emitted(engines: Engines) -> None:
    """Where end tokens end nothing, an answer goes on after one."""
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    assert len(ask(engines[1], Request((5,), sampling, (2, 0))).tokens) == 6


def test_statistics_count_this_variants_tokens(engines: Engines) -> None:
    """Totals of an engine have the tokens that it made, not those it was given."""
    before = engines[1].statistics().num_output_tokens
    ask(engines[1], Request((5,), SamplingParams(max_tokens=9, ignore_eos=True), (7, 8, 9)))
    assert engines[1].statistics().num_output_tokens - before == 6
