"""Grammars: an answer has its form, and is the same one at every draft length."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fixtures import (
    ASSET,
    generate,
    opened,
    pack,
)
from tests.guided_fixtures import (
    CHOICE,
    DRAFT_LENGTHS,
    PERSON,
    REGEX,
    TOOLS,
    Engines,
    requests_of,
    same_at_every_length,
)
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.base import Guided, Request, SamplingParams
from trt_mtp.serve.engine.grammar import Grammars

SCHEMAS: tuple[Any, ...] = (
    PERSON,
    {"enum": ["red", "green", 3, None]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {"type": "string", "pattern": "^[a-z]{3}-[0-9]{2}$"},
    {"type": "integer", "minimum": 10, "maximum": 99},
    {
        "$defs": {"leaf": {"type": "object", "properties": {"v": {"const": 1}}, "required": ["v"]}},
        "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}],
    },
    {"x-guidance": {"lenient": True}, "type": "object", "maxProperties": 1},
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Variants of the trained checkpoint."""
    packed = pack(ASSET, tmp_path_factory.mktemp("guided") / "packed")
    with ExitStack() as stack:
        yield {k: stack.enter_context(opened(packed, k)) for k in DRAFT_LENGTHS}


@pytest.fixture(scope="module")
def prompt(engines: Engines) -> tuple[int, ...]:
    """One that asks for JSON."""
    text = "Return JSON with the keys name, city: Ada lives in Paris."
    return engines[0].encode_chat([{"role": "user", "content": text}])


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_fits_its_schema(engines: Engines, prompt: tuple[int, ...], schema: Any) -> None:
    """Greedy and sampled, whole answers are JSON that the schema takes; cut ones say so."""
    ends = engines[0].codec.eos_ids
    for answer in same_at_every_length(engines, requests_of(prompt, Guided("json_schema", schema))):
        assert not ends & set(answer.tokens)
        if answer.last.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
        else:
            assert len(answer.tokens) == 150


HUGE: tuple[Any, ...] = (
    {"type": "integer", "multipleOf": 99_999_989},
    {"type": "string", "allOf": [{"pattern": f"(.*a.*b){{{n}}}"} for n in range(2, 60)]},
)


@pytest.mark.parametrize("schema", HUGE, ids=("multiple", "patterns"))
def test_a_grammar_that_takes_hours_to_compile_is_refused(
    engines: Engines, prompt: tuple[int, ...], schema: Any
) -> None:
    """In seconds, and the same engine goes on to compile others."""
    with pytest.raises(InputError, match="json_schema can't be followed: compiling it takes too"):
        generate(
            engines[3], [Request(prompt, SamplingParams(), guided=Guided("json_schema", schema))]
        )
    request = Request(prompt, SamplingParams(max_tokens=8), guided=Guided("regex", "[0-9]{3}"))
    [answer] = generate(engines[3], [request])
    assert re.fullmatch("[0-9]{3}", answer.text)


def test_patterns_and_choices(engines: Engines, prompt: tuple[int, ...]) -> None:
    """An answer may go on where one choice begins another; it ends where nothing can follow."""
    for answer in same_at_every_length(engines, requests_of(prompt, REGEX)):
        assert re.fullmatch(REGEX.value, answer.text)
        assert answer.last.finish_reason == "stop"
    for answer in same_at_every_length(engines, requests_of(prompt, CHOICE)):
        assert answer.text in CHOICE.value


def test_calls_of_tools(engines: Engines, prompt: tuple[int, ...]) -> None:
    """In Qwen3's form: one of any tool, several, or one of the tool that is named."""
    call = r'<tool_call>\n\{"name": "weather", "arguments": (\{.*\})\}\n</tool_call>'
    named = Guided("tool_choice", "weather", TOOLS[:1], is_single=True)
    schema = TOOLS[0]["function"]["parameters"]
    for answer in same_at_every_length(engines, requests_of(prompt, named)):
        found = re.fullmatch(call, answer.text, re.DOTALL)
        assert found
        jsonschema.validate(json.loads(found[1]), schema)
    for answer in same_at_every_length(
        engines, requests_of(prompt, Guided("tool_choice", "", TOOLS))
    ):
        calls = answer.text.split("<tool_call>\n")[1:]
        assert calls
        if answer.last.finish_reason == "stop":
            values = [json.loads(text.partition("\n</tool_call>")[0]) for text in calls]
            assert {value["name"] for value in values} <= {"weather", 'the "time"'}


def test_json_or_calls(engines: Engines, prompt: tuple[int, ...]) -> None:
    """Where tools may be called, the answer is either."""
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": city}}
    guided = Guided("json_schema", PERSON, (tool,), is_single=True)
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    asking = engines[0].encode_chat(question, [tool])
    requests = requests_of(prompt, guided) + requests_of(asking, guided)
    texts = [answer.text for answer in same_at_every_length(engines, requests)]
    assert [text[:11] for text in texts[3:]] == ["<tool_call>"] * 3
    assert all(text.startswith("{") for text in texts[:3])
    found = re.fullmatch(
        r'<tool_call>\n\{"name": "weather", "arguments": (.*)\}\n</tool_call>', texts[3]
    )
    assert found
    jsonschema.validate(json.loads(found[1]), city)


def test_what_must_come_is_drafted(engines: Engines, prompt: tuple[int, ...]) -> None:
    """Where a grammar leaves one token at a time, every draft is accepted."""
    text = "The quick brown fox jumps over the lazy dog, and over 12 others."
    for k, engine in engines.items():
        [answer] = generate(engine, [Request(prompt, guided=Guided("choice", [text]))])
        assert answer.text == text
        assert answer.last.counters.num_steps == -(-(len(answer.tokens) - 1) // (k + 1))


def test_a_cut_answer_says_so(engines: Engines, prompt: tuple[int, ...]) -> None:
    """At max_tokens, wherever in a drafted block."""
    for most in (1, 2, 5, 6, 7):
        requests = requests_of(prompt, Guided("json_schema", PERSON), max_tokens=most)
        for answer in same_at_every_length(engines, requests):
            assert (len(answer.tokens), answer.last.finish_reason) == (most, "length")


def test_end_tokens_that_are_held_back(engines: Engines, prompt: tuple[int, ...]) -> None:
    """min_tokens and ignore_eos hold them back while the grammar has anything else."""
    letters = Guided("regex", "[a-z]{1,60}")
    ends = engines[0].codec.eos_ids
    for held in ({"min_tokens": 12}, {"ignore_eos": True, "max_tokens": 25}):
        for answer in same_at_every_length(engines, requests_of(prompt, letters, **held)):
            assert len(answer.tokens) >= 12 or len(answer.text) == 60
            assert not ends & set(answer.tokens[:12])
    for answer in same_at_every_length(
        engines, requests_of(prompt, Guided("choice", ["no"]), ignore_eos=True, min_tokens=20)
    ):
        assert (answer.text, answer.last.finish_reason) == ("no", "stop")


def test_an_end_token_is_no_text(engines: Engines, prompt: tuple[int, ...]) -> None:
    """A form that has its text in it isn't answered as if it had ended there."""
    for guided in (Guided("regex", r"[a-c]<\|im_end\|>d"), Guided("choice", ["a<|im_end|>"])):
        for engine in engines.values():
            [answer] = generate(engine, [Request(prompt, guided=guided)])
            assert answer.last.finish_reason == "error"
            assert "can't be followed" in answer.last.error


def test_other_answers_beside_it(engines: Engines, prompt: tuple[int, ...]) -> None:
    """A batch may have both; those without a grammar are what they are alone."""
    free = [Request(prompt, SamplingParams(40, 0.8, seed=seed)) for seed in range(4)]
    guided = requests_of(prompt, REGEX) + requests_of(prompt, Guided("json_schema", PERSON))
    alone = [generate(engines[0], [request])[0].tokens for request in (*free, *guided)]
    for engine in engines.values():
        answers = generate(engine, [*free, *guided])
        assert [answer.tokens for answer in answers] == alone


def test_penalties_and_log_probabilities(engines: Engines, prompt: tuple[int, ...]) -> None:
    """What a grammar leaves is penalized, and told of, in the same way at every draft length."""
    held = {"frequency_penalty": 0.7, "presence_penalty": 0.3, "max_tokens": 60}
    requests = [
        replace(request, num_logprobs=2)
        for guided in (CHOICE, Guided("json_schema", PERSON))
        for request in requests_of(prompt, guided, **held)
    ]
    same_at_every_length(engines, requests)
    told = []
    for engine in engines.values():
        answers = generate(engine, requests)
        told.append(
            [place for each in answers for chunk in each.chunks for place in chunk.logprobs]
        )
    assert all(places == told[0] for places in told)
    values = [each.logprob for place in told[0] for each in (place.token, *place.top)]
    assert all(np.isfinite(values))
    assert 0.0 in values  # of a token that had to come


def test_another_variant_goes_on(engines: Engines, prompt: tuple[int, ...]) -> None:
    """At every seam the grammar stands where the emitted tokens left it."""
    for request in requests_of(prompt, Guided("json_schema", PERSON), max_tokens=40):
        [whole] = generate(engines[0], [request])
        for seam in range(1, len(whole.tokens)):
            rest = replace(request, emitted_ids=tuple(whole.tokens[:seam]))
            [answer] = generate(engines[(1, 3, 5)[seam % 3]], [rest])
            assert answer.tokens == whole.tokens[seam:]
            assert answer.last.finish_reason == whole.last.finish_reason


@pytest.mark.parametrize(
    ("guided", "says"),
    [
        (Guided("json_schema", {"type": "objec"}), r"json_schema can't be .*: Invalid type: objec"),
        (Guided("json_schema", {"not": {}}), r'Unimplemented keys: \["not"\]'),
        (Guided("json_schema", {"type": "string", "pattern": "("}), "unclosed group"),
        (
            Guided("json_schema", {"properties": {"x": {"type": "string", "pattern": "(?!a)b"}}}),
            r"look-around, .* is not supported, in the pattern \(\?!a\)b$",
        ),
        (Guided("json_schema", {"$ref": "http://example.org/x"}), "json_schema can't be followed"),
        (Guided("json_schema", {"type": "integer", "minimum": 2, "maximum": 1}), "can't be foll"),
        (Guided("json_schema", {"enum": ["\ud800"]}), "json_schema can't be followed"),
        (Guided("regex", "("), "regex can't be followed: unclosed group"),
        (Guided("regex", r"[^\s\S]"), "no text fits"),
        (Guided("regex", "(" * 5000 + ")" * 5000), "regex can't be followed"),
    ],
)
def test_what_is_no_grammar_is_refused(engines: Engines, guided: Guided, says: str) -> None:
    """At once, in a sentence."""
    with pytest.raises(InputError, match=says) as error:
        engines[3].submit(Request((5,), guided=guided), lambda chunk: None)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_a_schema_that_nests_deeply_is_refused(engines: Engines) -> None:
    """And takes no process down."""
    schema: Any = {}
    for _ in range(500):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError, match="json_schema can't be followed"):
        engines[0].submit(Request((5,), guided=Guided("json_schema", schema)), lambda chunk: None)


def test_a_grammar_that_takes_too_much_work_ends_its_answer(engines: Engines) -> None:
    """With an error of its own; the engine goes on."""
    heavy = Request((5, 6), guided=Guided("regex", "(a{1000}){1000}"))
    for engine in engines.values():
        bad, good = generate(engine, [heavy, Request((5, 6), SamplingParams(9, ignore_eos=True))])
        assert bad.last.finish_reason == "error"
        assert re.match("guided_decoding can't be followed: lexer error", bad.last.error)
        assert len(good.tokens) == 9
        assert engine.failure == ""


def test_emitted_tokens_that_break_the_grammar_are_refused(
    engines: Engines, prompt: tuple[int, ...]
) -> None:
    """As are those that complete it."""
    whole = engines[0].encode("Paris or Rome")
    request = Request(prompt, guided=CHOICE)
    bad = replace(request, emitted_ids=(whole[0], *engines[0].encode("{")))
    with pytest.raises(InputError, match="token 2 of emitted_ids breaks guided_decoding"):
        engines[0].submit(bad, lambda chunk: None)
    with pytest.raises(InputError, match="the answer ended with token"):
        engines[0].submit(replace(request, emitted_ids=whole), lambda chunk: None)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    guided=st.sampled_from([CHOICE, REGEX, *(Guided("json_schema", s) for s in SCHEMAS)]),
)
def test_tokens_that_were_tried_leave_nothing(engines: Engines, data: Any, guided: Guided) -> None:
    """A guide's masks depend on the tokens that were kept, not on those that were taken back."""
    engine = engines[0]
    grammars = Grammars(ASSET, engine.codec, 2048)
    plain, tried = (grammars.begin(Request((5,), guided=guided)) for _ in range(2))
    assert plain is not None
    assert tried is not None

    def allowed(guide: Any) -> list[int]:
        words = np.zeros(grammars.num_words, np.uint32)
        if not guide.fill(words):
            return []
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return [int(token) for token in np.flatnonzero(bits)]

    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 4))):
            may = allowed(tried)
            if may:
                tried.try_token(data.draw(st.sampled_from(may)))
        tried.take_back()
        may = allowed(plain)
        assert allowed(tried) == may
        token = data.draw(st.sampled_from(may))
        assert plain.push(token) == tried.push(token)
        if not allowed(plain):
            break
