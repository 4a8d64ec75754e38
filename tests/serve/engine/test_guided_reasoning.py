"""Grammars of models that think: they begin behind the reasoning, in blocks of drafts too."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from tests.engine_fixtures import generate, make_drafting_checkpoint, opened, pack
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
from tests.tiny_model import write_tokenizer
from trt_mtp.controller.gateway.openai.answer_parser import AnswerParser
from trt_mtp.controller.gateway.openai.messages import schemas_of
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.base import Guided, Request, SamplingParams
from trt_mtp.serve.engine.text import TextCodec

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


PET: Any = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "$defs": {
        kind: {
            "type": "object",
            "properties": {
                "kind": {"const": kind},
                key: {"type": "integer", "minimum": 1, "maximum": 30},
            },
            "required": ["kind", key],
            "additionalProperties": False,
        }
        for kind, key in (("cat", "lives"), ("dog", "age"))
    },
}
DAYS: Any = {"days": {"enum": [1, 2]}, "until": {"enum": ["noon", "night"]}}
EITHER = [{"required": ["days"]}, {"required": ["until"]}]


@pytest.mark.parametrize(
    "parameters",
    [
        PET,
        {"properties": DAYS, "anyOf": EITHER},
        {"properties": DAYS, "oneOf": EITHER},
        {"allOf": [{"properties": DAYS, "required": ["days"]}, {"required": ["until"]}]},
        {"$ref": "#/$defs/p", "$defs": {"p": {"properties": DAYS, "required": ["until"]}}},
    ],
    ids=("union", "anyOf", "oneOf", "allOf", "reference"),
)
def test_arguments_fit_wherever_the_parameters_are(thinkers: Engines, parameters: Any) -> None:
    """In alternatives, in parts or in a definition, as models are exported."""
    tools: Any = ({"type": "function", "function": {"name": "f", "parameters": parameters}},)
    closed = thinkers[0].encode_chat(HELLO, None, False)
    guided = Guided("tool_choice", "f", tools, is_single=True)
    for answer in same_at_every_length(thinkers, requests_of(closed, guided, max_tokens=200)):
        assert answer.last.finish_reason == "stop"
        parser = AnswerParser("xml", schemas_of(tools), can_think=False, is_thinking=False)
        deltas = [*parser.push(answer.text), *parser.end()]
        arguments = json.loads("".join(delta.text for delta in deltas[1:]))
        jsonschema.validate(arguments, parameters)


def test_a_tool_of_too_many_alternatives_is_refused(thinkers: Engines) -> None:
    """In a sentence that names it."""
    parameters = {"anyOf": [{"required": [f"k{key}"]} for key in range(33)]}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    request = Request((5,), guided=Guided("tool_choice", "f", (tool,), is_single=True))
    with pytest.raises(InputError) as error:
        thinkers[3].submit(request, lambda chunk: None)
    assert str(error.value) == (
        "guided_decoding.tool_choice can't be followed: the parameters of 'f' have more than 32 "
        "alternatives in anyOf and oneOf: give it fewer, or make several tools of it"
    )
