"""The input guided_decoding: what it may hold, and the sentence for what it may not."""

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import MAX_GUIDED_BYTES
from trt_mtp.serve.engine.base import Guided
from trt_mtp.serve.guided_decoding import FORMS, read_guided

TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g")
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([*FORMS, "parallel_tool_calls", "name", "function"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"json_schema": {"type": "null"}}, Guided("json_schema", {"type": "null"})),
        ({"json_schema": True}, Guided("json_schema", True)),
        ({"json_object": True}, Guided("json_schema", {"type": "object"})),
        ({"regex": "a+"}, Guided("regex", "a+")),
        ({"choice": ["a", "b"]}, Guided("choice", ["a", "b"])),
        ({"tool_choice": "required"}, Guided("tool_choice", "", tuple(TOOLS))),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            Guided("tool_choice", "", tuple(TOOLS), is_single=True),
        ),
        (
            {"json_object": True, "tool_choice": "auto"},
            Guided("json_schema", {"type": "object"}, tuple(TOOLS)),
        ),
        ({"tool_choice": {"name": "g"}}, Guided("tool_choice", "g", (TOOLS[1],), is_single=True)),
    ],
)
def test_each_form(value: Any, expected: Guided) -> None:
    """One key, and what it asks for."""
    assert read_guided(json.dumps(value), TOOLS) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "guided_decoding is not JSON"),
        ("{", "guided_decoding is not JSON"),
        (" " * 100_000, f"has 100000 bytes; at most {MAX_GUIDED_BYTES}"),
        ("[" * 60_000, "guided_decoding is nested too deeply"),
        ("[]", "must be a JSON object with one of json_schema, json_object, regex"),
        ("{}", "this one has none"),
        ('{"regex": "a", "choice": ["a"]}', "this one has regex and choice"),
        ('{"regexp": "a"}', "no key 'regexp'; did you mean regex?"),
        ('{"regex": ""}', "guided_decoding.regex has to be a regular expression"),
        ('{"json_schema": []}', "guided_decoding.json_schema has to be a JSON schema: an ob"),
        ('{"json_object": {}}', "guided_decoding.json_object has to be true"),
        ('{"choice": []}', "guided_decoding.choice has to be a list of 1 to 1024 texts"),
        ('{"choice": [""]}', "guided_decoding.choice has to be a list"),
        ('{"regex": "a", "parallel_tool_calls": true}', "goes with tool_choice"),
        ('{"tool_choice": "none"}', 'tool_choice has to be "required", or {"name": NAME}'),
        ('{"tool_choice": "auto"}', "this one has none"),
        ('{"tool_choice": "auto", "regex": "a"}', "auto goes with json_schema or json_object"),
        ('{"tool_choice": {"name": "h"}}', "tool_choice names 'h'"),
        ('{"tool_choice": "required", "parallel_tool_calls": 1}', "has to be true or false"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    """In one sentence that names the key."""
    with pytest.raises(InputError, match=re.escape(says)) as error:
        read_guided(text, TOOLS)
    assert len(str(error.value)) < 200


def test_tools_that_can_not_be_called() -> None:
    """A forced call needs tools, each with a name, and no more of them than can be compiled."""
    forced = '{"tool_choice": "required"}'
    with pytest.raises(InputError, match="goes with tools, and this request has none"):
        read_guided(forced)
    with pytest.raises(InputError, match=r"tools\[1\].function.name has to be a text"):
        read_guided(forced, [TOOLS[0], {"function": {"name": 5}}])
    large = {"function": {"name": "f", "description": "x" * MAX_GUIDED_BYTES}}
    with pytest.raises(InputError, match="with tools of at most"):
        read_guided(forced, [large])


@given(st.dictionaries(KEYS, VALUES, max_size=2) | VALUES)
def test_any_json_is_read_or_refused(value: Any) -> None:
    """Nothing else is raised."""
    with suppress(InputError):
        assert isinstance(read_guided(json.dumps(value), TOOLS), Guided)
