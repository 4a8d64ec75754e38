"""Grammars: an answer has its form, and is the same one at every draft length."""

import json
import re
from collections.abc import Iterator, Sequence
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
    Answer,
    generate,
    make_drafting_checkpoint,
    opened,
    pack,
)
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.base import Guided, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine
from trt_mtp.serve.engine.grammar import Grammars

DRAFT_LENGTHS = (0, 1, 3, 5)
Engines = dict[int, CpuEngine]
PERSON: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
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
TOOLS: Any = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"$ref": "#/$defs/days"},
                },
                "required": ["unit"],
                "additionalProperties": False,
                "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": 'the "time"'}},
)
REGEX = Guided("regex", "[A-Z][a-z]{1,9}( [0-9]{2,4})?")
CHOICE = Guided("choice", ["Paris", "Paris or Rome", 'a "b"\n', "世界"])


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


def requests_of(prompt: tuple[int, ...], guided: Guided, **sampling: Any) -> list[Request]:
    """A greedy request and two that are sampled."""
    return [
        Request(
            prompt,
            SamplingParams(**{"max_tokens": 150, "seed": seed, "temperature": heat, **sampling}),
            guided=guided,
        )
        for seed, heat in enumerate((0.0, 0.7, 1.0))
    ]


def same_at_every_length(engines: Engines, requests: Sequence[Request]) -> list[Answer]:
    """The answers, after checking that all draft lengths give them, and their counters add up."""
    expected = generate(engines[0], requests)
    for k in DRAFT_LENGTHS:
        for plain, answer in zip(expected, generate(engines[k], requests), strict=True):
            assert answer.last.error == ""
            assert (answer.tokens, answer.text) == (plain.tokens, plain.text)
            assert answer.last.finish_reason == plain.last.finish_reason
            counters = answer.last.counters
            assert counters.num_draft_tokens == k * counters.num_steps
            assert len(answer.tokens) == 1 + counters.num_steps + counters.num_accepted_draft_tokens
    return expected


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


MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + message.content + '<|im_end|>' }}\
{%- endfor %}{{ '<|im_start|>' }}\
{%- if enable_thinking is not defined %}{{ '<think>\n' }}{% elif not enable_thinking %}\
{{ '<think>\n\n</think>\n\n' }}{% endif %}{# <function= #}"""
HELLO: list[dict[str, object]] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Variants whose greedy answers begin with `abc</think>` where a prompt ends with `<think>\\n`.

    Their form of calls is Qwen3.5's.
    """
    from tests.tiny_model import write_tokenizer
    from trt_mtp.serve.engine.text import TextCodec

    folder = tmp_path_factory.mktemp("thinking")
    checkpoint = make_drafting_checkpoint(folder / "first")
    write_tokenizer(checkpoint, MARKS, TEMPLATE)
    verse = TextCodec(checkpoint).encode("\nabc</think>")
    checkpoint = make_drafting_checkpoint(folder / "checkpoint", verse=verse)
    write_tokenizer(checkpoint, MARKS, TEMPLATE)
    packed = pack(checkpoint, folder / "packed")
    with ExitStack() as stack:
        yield {k: stack.enter_context(opened(packed, k)) for k in DRAFT_LENGTHS}


def test_the_grammar_begins_behind_the_reasoning(thinkers: Engines) -> None:
    """Also where that ends inside a drafted block; before it no end token comes."""
    prompt = thinkers[0].encode_chat(HELLO)
    requests = [
        request
        for guided in (REGEX, CHOICE, Guided("json_schema", PERSON))
        for request in requests_of(prompt, replace(guided, may_think=True), max_tokens=90)
    ]
    answers = same_at_every_length(thinkers, requests)
    assert answers[0].text.startswith("abc</think>")
    for request, answer in zip(requests, answers, strict=True):
        reasoning, mark, text = answer.text.partition("</think>")
        assert not thinkers[0].codec.eos_ids & set(answer.tokens[: len(reasoning)])
        if mark and request.guided == replace(REGEX, may_think=True):
            assert re.fullmatch(REGEX.value, text)
    chunks = generate(thinkers[3], requests[:1])[0].chunks
    assert any(re.search("</think>.", chunk.text) for chunk in chunks)


def test_reasoning_that_the_prompt_has_closed_or_left_open(thinkers: Engines) -> None:
    """Closed, the grammar begins at once; not mentioned, the answer may begin with it or think."""
    think = thinkers[0].codec.tokenizer.token_to_id("<think>")
    closed = thinkers[0].encode_chat(HELLO, None, False)
    answers = same_at_every_length(thinkers, requests_of(closed, replace(REGEX, may_think=True)))
    for answer in answers:
        assert re.fullmatch(REGEX.value, answer.text)
    unsaid = thinkers[0].encode_chat(HELLO, None, True)
    opening = [
        Request(unsaid, SamplingParams(60, 5.0, seed=seed), guided=replace(CHOICE, may_think=True))
        for seed in range(12)
    ]
    firsts = {answer.tokens[0] for answer in same_at_every_length(thinkers, opening)}
    assert think in firsts
    assert len(firsts) > 1
    never = [replace(request, guided=CHOICE) for request in opening]
    assert all(answer.text in CHOICE.value for answer in same_at_every_length(thinkers, never))


def test_an_answer_goes_on_inside_and_behind_the_reasoning(thinkers: Engines) -> None:
    """Emitted tokens may end in either."""
    prompt = thinkers[0].encode_chat(HELLO)
    [request, *_] = requests_of(prompt, replace(REGEX, may_think=True))
    [whole] = generate(thinkers[0], [request])
    for seam in range(1, len(whole.tokens)):
        for k in (0, 3):
            rest = replace(request, emitted_ids=tuple(whole.tokens[:seam]))
            assert generate(thinkers[k], [rest])[0].tokens == whole.tokens[seam:]


def test_calls_in_the_newer_form(thinkers: Engines) -> None:
    """Tags around texts and JSON; a call may end the reasoning."""
    from trt_mtp.controller.gateway.openai.answer_parser import AnswerParser
    from trt_mtp.controller.gateway.openai.messages import schemas_of

    closed = thinkers[0].encode_chat(HELLO, None, False)
    guided = Guided("tool_choice", "", TOOLS, is_single=True)
    answers = same_at_every_length(thinkers, requests_of(closed, guided, max_tokens=200))
    for answer in answers:
        assert answer.last.finish_reason == "stop"
        parser = AnswerParser("xml", schemas_of(TOOLS), can_think=False, is_thinking=False)
        deltas = [*parser.push(answer.text), *parser.end()]
        kinds = {delta.kind for delta in deltas}
        assert kinds == {"call", "arguments"}
        if deltas[0].text == "weather":
            arguments = json.loads("".join(delta.text for delta in deltas[1:]))
            jsonschema.validate(arguments, TOOLS[0]["function"]["parameters"])
