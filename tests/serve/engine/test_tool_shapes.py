"""Forced calls in Qwen3.5's form: their arguments fit, whatever the parameters are made of."""

import itertools
import json
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from trt_mtp.controller.gateway.openai.answer_parser import AnswerParser
from trt_mtp.controller.gateway.openai.messages import schemas_of
from trt_mtp.serve.engine.tool_grammar import calls_grammar

A_OR_B: Any = {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}
PETS: Any = {
    "cat": {
        "type": "object",
        "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
        "required": ["kind", "lives"],
        "additionalProperties": False,
    },
    "dog": {
        "type": "object",
        "properties": {"kind": {"const": "dog"}, "good": {"type": "boolean"}},
        "required": ["kind"],
        "additionalProperties": False,
    },
}
REFERENCES = [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]
# name -> schema, arguments that have to be possible
SCHEMAS: dict[str, tuple[Any, list[Any]]] = {
    "plain": (
        {"properties": A_OR_B, "required": ["b"]},
        [{"b": True}, {"a": 1, "b": True}],
    ),
    "required in anyOf": (
        {"properties": A_OR_B, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": True}, {"a": 2, "b": False}],
    ),
    "required in oneOf": (
        {"properties": A_OR_B, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": True}],
    ),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"a": {"maximum": 1}, "b": {"type": "boolean"}}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": True}],
    ),
    "reference": (
        {"$ref": "#/$defs/cat", "$defs": PETS},
        [{"kind": "cat", "lives": 9}],
    ),
    "discriminated": (
        {"oneOf": REFERENCES, "$defs": PETS, "discriminator": {"propertyName": "kind"}},
        [{"kind": "cat", "lives": 9}, {"kind": "dog"}, {"kind": "dog", "good": True}],
    ),
    "narrowed": (
        {
            "properties": {"kind": {"type": "string", "enum": ["cat", "dog"]}, **A_OR_B},
            "required": ["kind"],
            "anyOf": [
                {"properties": {"kind": {"const": "cat"}}, "required": ["a"]},
                {"properties": {"kind": {"const": "dog"}}, "required": ["b"]},
            ],
        },
        [{"kind": "cat", "a": 1}, {"kind": "dog", "b": True}],
    ),
    "nested": (
        {
            "properties": {"a": {"const": 1}},
            "required": ["a"],
            "anyOf": [
                {"allOf": [{"oneOf": REFERENCES}]},
                {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
                {"type": "null"},
                False,
            ],
            "$defs": {name: {**pet, "additionalProperties": True} for name, pet in PETS.items()},
        },
        [{"a": 1, "b": True}, {"a": 1, "kind": "cat", "lives": 9}, {"a": 1, "kind": "dog"}],
    ),
    "types by kind": (
        {
            "anyOf": [
                {
                    "properties": {"kind": {"const": kind}, "a": {"type": type_}},
                    "required": ["kind", "a"],
                }
                for kind, type_ in (("cat", "integer"), ("dog", "string"), ("cow", "boolean"))
            ]
        },
        [{"kind": "cat", "a": 1}, {"kind": "dog", "a": "1"}, {"kind": "cow", "a": True}],
    ),
    "required only": (
        {"properties": {"b": {"type": "boolean"}}, "required": ["free"]},
        [{"free": "x"}, {"b": True, "free": "any"}],
    ),
    "behind allOf": (
        {
            "properties": {"a": {"allOf": [{"$ref": "#/$defs/n"}], "default": 1}},
            "required": ["a"],
            "$defs": {"n": {"type": "integer", "enum": [1, 9]}},
        },
        [{"a": 1}, {"a": 9}],
    ),
}
BYTES = LLTokenizer("byte")
VALUES: dict[str, list[Any]] = {
    "kind": ["cat", "dog", "cow"],
    "a": [1, 9, True, "x", "1"],
    "b": [True, "x"],
    "lives": [9, "x"],
    "good": [True],
    "free": ["x"],
}


def grammar_of(parameters: Any) -> str:
    """That of one call of `f`."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    return calls_grammar(tools, is_xml=True, is_single=True, special=(), options={})


def matcher_of(parameters: Any) -> LLMatcher:
    """One that takes bytes."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar_of(parameters)))
    assert not matcher.get_error()
    return matcher


def fits(matcher: LLMatcher, text: str) -> bool:
    """Whether `text` is all that a grammar wants."""
    own = matcher.deep_copy()
    tokens = list(text.encode())
    return bool(own.try_consume_tokens(tokens) == len(tokens) and own.is_accepting())


def written(arguments: Any) -> str:
    """A call with these arguments."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in arguments.items()
    }
    values = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>"


def read(parameters: Any, text: str) -> Any:
    """The arguments that the gateway reads in a call, at once and by the character."""
    schemas = schemas_of([{"function": {"name": "f", "parameters": parameters}}])
    found = []
    for pieces in ([text], text):
        parser = AnswerParser("xml", schemas, can_think=False, is_thinking=False)
        deltas = [delta for piece in pieces for delta in parser.push(piece)] + list(parser.end())
        found.append("".join(delta.text for delta in deltas if delta.kind == "arguments"))
    assert found[0] == found[1]
    return json.loads(found[0])


@pytest.mark.parametrize(("parameters", "possible"), SCHEMAS.values(), ids=SCHEMAS)
def test_calls_fit_their_schema(parameters: Any, possible: list[Any]) -> None:
    """All that can be written is valid as it is read, in every order and with every key."""
    matcher = matcher_of(parameters)
    for arguments in possible:
        assert fits(matcher, written(arguments))
        assert read(parameters, written(arguments)) == arguments
        jsonschema.validate(arguments, parameters)
    validator = jsonschema.Draft202012Validator(parameters)
    named = [key for key in VALUES if f'"{key}"' in json.dumps(parameters)]
    for size in range(4):
        for keys in itertools.permutations(named, size):
            for values in itertools.product(*(VALUES[key] for key in keys)):
                text = written(dict(zip(keys, values, strict=True)))
                assert not fits(matcher, text) or validator.is_valid(read(parameters, text)), text


def test_what_tells_alternatives_apart_is_written() -> None:
    """Also where it has a default, and so isn't required; that of a single shape needn't be."""
    pets = [{"properties": {"kind": {"const": kind, "default": kind}}} for kind in ("cat", "dog")]
    either, cat = matcher_of({"anyOf": pets}), matcher_of(pets[0])
    assert [fits(either, written(each)) for each in ({}, {"kind": "dog"})] == [False, True]
    assert [fits(cat, written(each)) for each in ({}, {"kind": "cat"})] == [True, True]


def test_the_same_shapes_and_parameters_are_there_once() -> None:
    """Alternatives that differ in what grammars don't have, and parameters that several have."""
    plain = {"properties": A_OR_B, "required": ["a"]}
    notes = [{"title": title, "required": ["a"]} for title in "xy"]
    assert grammar_of({**plain, "anyOf": notes}) == grammar_of(plain)
    either = grammar_of({"properties": A_OR_B, "anyOf": [{"required": [key]} for key in "ab"]})
    assert either.count("parameter=a") == 1
    assert either.count("function=f") == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"anyOf": [{"required": [f"k{at}"]} for at in range(33)]},
        {"allOf": [{"anyOf": [{"required": [f"k{at}"]}, {}]} for at in range(6)]},
        {"allOf": [{"anyOf": [{"required": [f"k{at}"]}, {}]} for at in range(1_000)]},
        {"anyOf": [{}] * 10_000},
        {"$ref": "#/$defs/p", "$defs": {"p": {"$ref": "#/$defs/p"}}},
        {"$ref": "#/$defs/p", "$defs": {"p": {"anyOf": [{"$ref": "#/$defs/p"}, {}]}}},
    ],
)
def test_too_many_alternatives_are_refused(parameters: Any) -> None:
    """In a sentence with the tool's name, and without trying them all."""
    with pytest.raises(
        ValueError, match=r"^the parameters of 'f' have more than (32|256) "
    ) as error:
        grammar_of(parameters)
    assert "make several tools of it" in str(error.value)


@pytest.mark.parametrize(
    "parameters",
    [
        {"anyOf": 3, "oneOf": [], "allOf": {}, "$ref": 5, "required": "a", "properties": []},
        {
            "anyOf": [3, None],
            "oneOf": [{"type": 5, "properties": 5, "required": [5]}],
            "allOf": [1],
        },
        {"oneOf": [{"type": "null"}, {"type": ["string"]}]},
    ],
)
def test_what_is_no_schema_says_nothing(parameters: Any) -> None:
    """A call without arguments is one of what is left."""
    assert fits(matcher_of(parameters), written({}))
