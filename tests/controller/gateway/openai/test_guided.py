"""Structured output: what variants are asked for, and what is refused before any is."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.gateway_fixtures import GatewayThread

SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
FUNCTION: Any = {"type": "function", "function": {"name": "f"}}


def guided(client: OpenAI, script: Any, **request: Any) -> Any:
    """The input `guided_decoding` that a variant got, None where it got none."""
    answer = client.chat.completions.create(
        model="qwen_mtp", messages=script(tokens=1, echo=True), **request
    )
    inputs = json.loads(str(answer.choices[0].message.content)[:-1])["inputs"]
    text = inputs.get("guided_decoding")
    return None if text is None else json.loads(text[2][0])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": {"type": "json_object", "schema": None}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"json_schema": SCHEMA},
        ),
        ({"response_format": NAMED}, {"json_schema": SCHEMA}),
        ({"extra_body": {"guided_json": SCHEMA}}, {"json_schema": SCHEMA}),
        ({"extra_body": {"guided_json": json.dumps(SCHEMA)}}, {"json_schema": SCHEMA}),
        ({"extra_body": {"guided_regex": "a+"}}, {"regex": "a+"}),
        ({"extra_body": {"guided_choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"extra_body": {"structured_outputs": {"regex": "a+", "json": None}}}, {"regex": "a+"}),
        ({"extra_body": {"structured_outputs": {"json": SCHEMA}}}, {"json_schema": SCHEMA}),
        (
            {"tools": [TOOL], "tool_choice": "none", "response_format": NAMED},
            {"json_schema": SCHEMA},
        ),
    ],
)
def test_what_a_variant_is_asked_for(
    client: OpenAI, gateway: GatewayThread, script: Any, request_: Any, expected: Any
) -> None:
    """Each name for a form; the policy sees that there is one."""
    assert guided(client, script, **request_) == expected
    seen = gateway.policy.seen[-1]
    assert (seen.has_response_format, seen.is_guided) == (expected is not None,) * 2


def test_a_schema_in_a_text_is_not_read_where_it_is_too_long(client: OpenAI, script: Any) -> None:
    """Reading it can't be interrupted, and its marks are not among those of the body."""
    with pytest.raises(openai.BadRequestError, match="guided_json has 100001 bytes: at most 65536"):
        guided(client, script, extra_body={"guided_json": "[" * 100_001})


def test_forced_calls(client: OpenAI, gateway: GatewayThread, script: Any) -> None:
    """Of any tool, or of one; a call at a time where no more are wanted."""
    for choice, wanted in (("required", "required"), (FUNCTION, {"name": "f"})):
        for is_parallel in (None, True, False):
            options = {} if is_parallel is None else {"parallel_tool_calls": is_parallel}
            assert guided(client, script, tools=[TOOL], tool_choice=choice, **options) == {
                "tool_choice": wanted,
                "parallel_tool_calls": is_parallel is not False,
            }
    seen = gateway.policy.seen[-1]
    assert (seen.is_guided, seen.has_tools, seen.has_response_format) == (True, True, False)
    assert guided(client, script, tools=[TOOL], tool_choice="auto") is None


def test_a_form_beside_tools(client: OpenAI, gateway: GatewayThread, script: Any) -> None:
    """The answer may be of the form, or calls; calls that are forced leave no room for a form."""
    request: Any = {"response_format": NAMED, "tools": [TOOL]}
    for choice in ({}, {"tool_choice": "auto"}):
        assert guided(client, script, **request, **choice) == {
            "json_schema": SCHEMA,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
        }
    seen = gateway.policy.seen[-1]
    assert (seen.is_guided, seen.has_tools, seen.has_response_format) == (True, True, True)
    forced = guided(client, script, **request, tool_choice="required", parallel_tool_calls=False)
    assert forced == {"tool_choice": "required", "parallel_tool_calls": False}


def test_completions_have_forms_too(client: OpenAI, gateway: GatewayThread) -> None:
    """With each of their prompts."""
    client.completions.create(model="qwen_mtp", prompt=["a", "b"], extra_body={"guided_regex": "a"})
    assert [seen.is_guided for seen in gateway.policy.seen[-2:]] == [True, True]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"guided_regex": "a", "tools": [TOOL]}, "structured_outputs"),
        ({"response_format": NAMED, "guided_regex": "a"}, "guided_regex"),
        ({"guided_grammar": "start: x"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"guided_choice": ["x" * 70_000]}, "response_format"),
    ],
)
def test_what_is_refused(client: OpenAI, script: Any, request_: Any, param: str) -> None:
    """By name, with status 400."""
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="qwen_mtp", messages=script(tokens=1), extra_body=request_
        )
    assert error.value.param == param
