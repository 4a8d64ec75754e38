"""How answers have to be read, as a checkpoint's chat template says it."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import CHAT_TEMPLATE
from tests.variants import make_variant
from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.controller.gateway.openai.call_xml import XmlCall
from trt_mtp.controller.gateway.openai.messages import schemas_of
from trt_mtp.serve.chat_format import CHAT_FORMAT, ChatFormat, kinds_of, parameter_kinds
from trt_mtp.serve.repository import variant_config

OPENING = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
QWEN3 = "{%- if enable_thinking is defined and enable_thinking is false %}" + (
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
QWEN35 = QWEN3.replace("{%- endif %}{%- endif %}", "") + (
    "{%- else %}{{ '<think>\\n' }}{%- endif %}{%- endif %}"
)
CALLS = "{%- for message in messages %}{{ message.content }}{%- endfor %}"
BY_TOOLS = CALLS + "{%- if not tools %}{{ '<think>\\n' }}{%- endif %}"
NO_TOOLS = CALLS + "{%- if tools %}{{ raise_exception('No.') }}{%- endif %}{{ '<think>\\n' }}"
UNLESS_OFF, ALWAYS = (True, True, False), (True, True, True)
XML = CALLS + "{%- if tools %}{{ '<tool_call>\\n<function=name>' }}{%- endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, ChatFormat()),
        (CALLS + OPENING + QWEN3, ChatFormat("json", True)),
        (XML + OPENING + QWEN35, ChatFormat("xml", True, UNLESS_OFF, UNLESS_OFF)),
        (BY_TOOLS, ChatFormat("json", True, ALWAYS)),
        (NO_TOOLS, ChatFormat("json", True, ALWAYS, ALWAYS)),
        (XML, ChatFormat("xml")),
    ],
)
def test_a_template_says_it(tmp_path: Path, template: str, expected: ChatFormat) -> None:
    """The form of calls, and whether a prompt ends inside the reasoning."""
    (tmp_path / "chat_template.jinja").write_text(template)
    variant = make_variant(tmp_path / "engines", 3)
    record = replace(variant.record, chat_format=read_chat_format(tmp_path))
    parameter = variant_config(replace(variant, record=record)).parameters[CHAT_FORMAT]
    assert ChatFormat.from_json(parameter) == expected


def test_a_checkpoint_without_a_template_says_nothing(tmp_path: Path) -> None:
    """Then there are no chats to read."""
    assert read_chat_format(tmp_path) == {}
    assert CHAT_FORMAT not in variant_config(make_variant(tmp_path / "engines", 3)).parameters


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"opens": 3}', '{"opens": [1, 2]}'])
def test_another_servers_parameter_is_nothing(text: str) -> None:
    """A repository may be older, or not ours."""
    assert ChatFormat.from_json(text) == ChatFormat()


def test_an_older_variant_says_one_thing_for_both() -> None:
    """Its record has nothing of prompts with tools."""
    text = '{"tool_calls": "json", "can_think": true, "opens": [true, true, false]}'
    assert ChatFormat.from_json(text).is_open(None, has_tools=True)


ROOT: Any = {
    "$defs": {
        "a": {"type": "integer"},
        "b": {"$ref": "#/$defs/a", "title": "B"},
        "loop": {"$ref": "#/$defs/loop"},
        "either": {"anyOf": [{"$ref": "#/$defs/b"}, {"oneOf": [{"type": ["null", "boolean"]}]}]},
    }
}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        (None, {"string"}),
        ({"type": "number"}, {"number"}),
        ({"$ref": "#/$defs/b"}, {"integer"}),
        ({"$ref": "#/$defs/b", "type": "null"}, {"null"}),
        ({"$ref": "#/$defs/either"}, {"integer", "null", "boolean"}),
        ({"allOf": [{"$ref": "#/$defs/b"}], "default": 3}, {"integer"}),
        ({"const": 1}, {"integer"}),
        ({"allOf": [{"enum": ["auto", 1.5, None, True]}]}, {"string", "number", "null", "boolean"}),
        ({"type": "integer", "enum": ["auto"]}, {"integer"}),
        ({"$ref": "#/$defs/loop"}, {"string"}),
        ({"$ref": "#/$defs/none"}, {"string"}),
        ({"$ref": "#" + "/$defs" * 100_000}, {"string"}),
        ({"type": ["null"] * 1_000 + ["boolean"]}, {"null"}),
    ],
)
def test_types_of_a_parameter(schema: Any, kinds: set[str]) -> None:
    """References are followed, those of alternatives too, wherever they lead."""
    assert kinds_of(schema, ROOT) == kinds


def test_a_schema_that_names_something_large_often_stays_small() -> None:
    """2,000 references to 2,000 keys, 69 KB, took 137 MB; and ten times that a hundred times."""
    number = 20_000
    large: Any = {f"k{key}": 1 for key in range(number)} | {"type": "integer"}
    parameters = {
        "$defs": {"large": large, "all": {"anyOf": [{"$ref": "#/$defs/large"}] * number}},
        "properties": {f"p{key}": {"$ref": "#/$defs/all"} for key in range(number)},
    }
    tracemalloc.start()
    try:
        schemas = schemas_of([{"function": {"name": "f", "parameters": parameters}}])
        call = XmlCall(schemas)
        call.push("<function=f>")
        for key in range(10):
            call.push(f"<parameter=p{key}>3</parameter>")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


class Counting(dict[str, Any]):
    """An object of a schema that counts how often something is looked up in it."""

    num_lookups = 0

    def get(self, key: str, default: Any = None) -> Any:
        """As a dictionary."""
        Counting.num_lookups += 1
        return super().get(key, default)


def test_a_type_is_looked_up_in_bounded_time_wherever_its_schema_leads() -> None:
    """12 KB stopped the gateway for 0.1 s, each time that an answer had such a parameter."""
    names, most = "abcdefgh", 120
    root = Counting()
    for name, following in zip(names, names[1:] + "-", strict=True):
        innermost = root.setdefault(name, Counting())
        for _ in range(most):
            innermost = innermost.setdefault("x", Counting())
        innermost["$ref"] = f"#/{following}" + "/x" * most
    first = Counting({"$ref": "#/a" + "/x" * most})
    root["short"] = Counting({"$ref": "#/short"})
    for alternative in (first, Counting({"$ref": "#/short"})):
        Counting.num_lookups = 0
        kinds_of({"anyOf": [alternative] * 256}, root)
        assert Counting.num_lookups < 4_000
        several = Counting({"properties": {"n": {"anyOf": [alternative] * 256}}})
        Counting.num_lookups = 0
        parameter_kinds({**root, "anyOf": [several] * 256}, "n")
        assert Counting.num_lookups < 8_000


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"n": {"type": "integer"}}},
        {"oneOf": [{"properties": {"m": {}}}, {"properties": {"n": {"type": "integer"}}}]},
        {"allOf": [{"anyOf": [{"properties": {"n": {"type": "integer"}}}]}]},
        {"$ref": "#/$defs/p", "$defs": {"p": {"properties": {"n": {"type": "integer"}}}}},
    ],
)
def test_a_parameter_is_found_wherever_the_schema_has_it(parameters: Any) -> None:
    """As models of several kinds, or in a definition, are exported."""
    assert parameter_kinds(parameters, "n") == {"integer"}
    assert parameter_kinds(parameters, "other") == {"string"}
