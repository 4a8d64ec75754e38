"""Formats in schemas: notes are passed over, wherever they are; what can't be kept to is named."""

import json
from copy import deepcopy
from typing import Any

import pytest
from llguidance import LLMatcher

from trt_mtp.serve.engine.guide import grammar_error
from trt_mtp.serve.engine.schema_formats import DEFINED, without_notes
from trt_mtp.serve.engine.tool_grammar import calls_grammar

NOTES = ("int32", "uint64", "double", "password", "binary", "byte", "path", "base64url")


def complaint(grammar: str) -> str:
    """What llguidance has against a grammar; empty for nothing."""
    return str(LLMatcher.validate_grammar(grammar, None))


@pytest.mark.parametrize("form", NOTES)
@pytest.mark.parametrize("is_xml", [False, True])
def test_notes_are_no_reason_to_refuse_a_schema(form: str, is_xml: bool) -> None:
    """Neither in an answer's schema nor in that of a tool."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"], "format": form},
            "b": {"type": "array", "items": {"$ref": "#/$defs/c"}},
        },
        "required": ["a", "b"],
        "$defs": {"c": {"anyOf": [{"type": "string", "format": form}, {"type": "null"}]}},
    }
    before = deepcopy(schema)
    assert not complaint(LLMatcher.grammar_from_json_schema(without_notes(schema)))
    tools = [{"function": {"name": "f", "parameters": schema}}]
    lark = calls_grammar(
        tools, is_xml=is_xml, is_single=True, special=(), options={}, schema=schema
    )
    assert not complaint(LLMatcher.grammar_from_lark(lark))
    assert schema == before


def test_formats_that_say_something_stay() -> None:
    """llguidance keeps to those that it knows; the others are refused, with what to do."""
    for form in DEFINED:
        schema = {"type": "string", "format": form}
        assert without_notes(schema) == schema
        said = complaint(LLMatcher.grammar_from_json_schema(schema))
        assert not said or (
            grammar_error(said) == "guided_decoding can't be followed: texts can't be held to the "
            f"format {form}: leave it out, or give a pattern"
        )
    assert not complaint(LLMatcher.grammar_from_json_schema({"format": "date-time"}))


@pytest.mark.parametrize(
    "place",
    [
        '{"items": %s}',
        '{"prefixItems": [true, %s]}',
        '{"items": [%s]}',
        '{"additionalProperties": %s}',
        '{"properties": {"format": %s}}',
        '{"patternProperties": {"^a": %s}}',
        '{"definitions": {"a": {"allOf": [{"if": %s}]}}}',
        '{"oneOf": [{"not": %s}, {"propertyNames": %s}]}',
    ],
)
def test_every_place_of_a_schema(place: str) -> None:
    """And none where `format` is somebody's own word."""
    assert without_notes(json.loads(place.replace("%s", '{"format": "int32"}'))) == json.loads(
        place.replace("%s", "{}")
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"format": "int32"}},
        {"enum": [{"format": "path"}]},
        {"default": {"items": {"format": "path"}}},
        {"properties": {"format": {"type": "string"}}},
        {"format": 5, "items": 3, "anyOf": {}, "properties": []},
    ],
)
def test_what_is_no_format(schema: dict[str, Any]) -> None:
    """Values of an answer, properties of that name, and what is no schema at all."""
    assert without_notes(schema) == schema


def test_depth_is_no_matter() -> None:
    """Clients choose it."""
    deep: dict[str, Any] = {"format": "int32"}
    for _ in range(20_000):
        deep = {"items": deep}
    found = without_notes(deep)
    for _ in range(20_000):
        found = found["items"]
    assert found == {}


def test_alternatives_that_may_both_fit() -> None:
    """The sentence has what clients can do, and not an option that they don't have."""
    both = {"oneOf": [{"type": "number"}, {"type": "integer"}]}
    said = grammar_error(complaint(LLMatcher.grammar_from_json_schema(both)))
    assert said.endswith("use anyOf, or give each a property with a const of its own")
    apart = [
        {"type": "object", "properties": {"type": {"const": name}}, "required": ["type"]}
        for name in ("a", "b")
    ]
    assert not complaint(LLMatcher.grammar_from_json_schema({"oneOf": apart}))
