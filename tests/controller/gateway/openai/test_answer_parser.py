"""Reasoning and tool calls in an answer's text: the same however it is cut into pieces."""

import json
import tracemalloc
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.gateway.openai.answer_parser import MAX_BLANKS, AnswerParser
from trt_mtp.controller.gateway.openai.deltas import Delta, ToolSchemas

SCHEMAS: ToolSchemas = {
    "f": {
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "number"},
            "whole": {"type": ["integer", "null"]},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "map": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        }
    }
}


def parsed(
    pieces: Sequence[str],
    form: str = "json",
    schemas: ToolSchemas | None = SCHEMAS,
    *,
    can_think: bool = True,
    is_thinking: bool = False,
) -> list[tuple[str, str]]:
    """The deltas, those of one kind that follow each other joined."""
    parser = AnswerParser(form, schemas, can_think=can_think, is_thinking=is_thinking)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.end()
    joined: list[tuple[str, str]] = []
    for kind, group in groupby(deltas, key=lambda delta: delta.kind):
        texts = [delta.text for delta in group]
        joined += [(kind, t) for t in texts] if kind == "call" else [(kind, "".join(texts))]
    return joined


def json_call(arguments: str, name: str = "f") -> str:
    """A call as Qwen3 writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def xml_call(**values: str) -> str:
    """A call as Qwen3.5 writes it."""
    lines = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
    return f"<tool_call>\n<function=f>\n{''.join(lines)}</function>\n</tool_call>"


@pytest.mark.parametrize("form", ["json", "xml"])
def test_text_without_marks_is_itself(form: str) -> None:
    """Nothing is lost or trimmed, not even what looks like the beginning of a mark."""
    for text in ("", "Hello.\n\n", "\n a < b, <tool, </think> <thi", "<", "<tool_call", "\n"):
        assert parsed([text], form) == ([("content", text)] if text else [])


def test_reasoning() -> None:
    """Where the answer opens it, and where the prompt did; line breaks at the marks go."""
    expected = [("reasoning", "Hm.\nYes."), ("content", "Four.\n")]
    assert parsed(["<think>\nHm.\nYes.\n</think>\n\nFour.\n"]) == expected
    assert parsed(["\nHm.\nYes.\n</think>\n\nFour.\n"], is_thinking=True) == expected
    assert parsed(["<think>\n\n</think>\n\nFour."]) == [("content", "Four.")]
    assert parsed(["Hm"], is_thinking=True) == [("reasoning", "Hm")]
    assert parsed(["<think>x"], can_think=False) == [("content", "<think>x")]
    assert parsed(["No <think>x</think>"]) == [("content", "No <think>x</think>")]


def test_a_call_ends_the_reasoning() -> None:
    """Models forget the mark."""
    text = "I call it.\n" + json_call("{}")
    assert parsed([text], is_thinking=True) == [
        ("reasoning", "I call it."),
        ("call", "f"),
        ("arguments", "{}"),
    ]


def test_calls_as_json() -> None:
    """The arguments as they were written, marks inside texts included."""
    arguments = '{"a": "</tool_call> \\" }", "b": [{"c": 1}]}'
    text = f"Both:\n{json_call(arguments)}\n{json_call('{}', 'g')}\nDone."
    assert parsed([text]) == [
        ("content", "Both:"),
        ("call", "f"),
        ("arguments", arguments),
        ("call", "g"),
        ("arguments", "{}"),
        ("content", "Done."),
    ]


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "parameters": {"a": 1}}', "f", '{"a": 1}'),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", '{"a": 1}'),
        ('{"name": "f\\u00fc", "arguments": {}}', "fü", "{}"),
        ('{"name": "f", "arguments": {}, "id": 3}', "f", "{}"),
    ],
)
def test_other_forms_of_json(body: str, name: str, arguments: str) -> None:
    """Whatever the order of the keys; also where the end is missing."""
    for end in ("</tool_call>", "\n</tool_call>\n", ""):
        assert parsed([f"<tool_call>{body}{end}"]) == [("call", name), ("arguments", arguments)]


@pytest.mark.parametrize("form", ["json", "xml"])
def test_what_is_no_call_stays_text(form: str) -> None:
    """Nothing is swallowed."""
    for text in (
        "<tool_call>nonsense</tool_call> and more",
        "<tool_call>\nnonsense",
        "<tool_call>",
    ):
        assert parsed([text], form) == [("content", text)]
    text = json_call("{}") if form == "json" else xml_call(text="x")
    assert parsed([text], form, None) == [("content", text)]


def test_calls_as_xml() -> None:
    """Values by the tool's schema; a text is itself, with the line breaks inside it."""
    values = {
        "text": "\n  3\n<b>\n",
        "number": "1.5",
        "whole": "null",
        "flag": "True",
        "list": "[1]",
        "map": '{"a": "b"}',
        "other": "4",
    }
    content, call, (kind, arguments) = parsed(["Yes.\n\n" + xml_call(**values)], "xml")
    assert (content, call, kind) == (("content", "Yes."), ("call", "f"), "arguments")
    assert json.loads(arguments) == {
        "text": "\n  3\n<b>\n",
        "number": 1.5,
        "whole": None,
        "flag": True,
        "list": [1],
        "map": {"a": "b"},
        "other": "4",
    }


@pytest.mark.parametrize(
    ("value", "key", "read"),
    [
        ("three", "number", "three"),
        ("Infinity", "number", "Infinity"),
        ("true", "number", "true"),
        ("1.5", "whole", "1.5"),
        ("9" * 5_000, "whole", "9" * 5_000),
        ("yes", "flag", "yes"),
        ("[1", "list", "[1"),
        ("null", "text", "null"),
    ],
)
def test_a_value_that_does_not_fit_is_a_text(value: str, key: str, read: str) -> None:
    """As the model wrote it."""
    *_, (_, arguments) = parsed([xml_call(**{key: value})], "xml")
    assert json.loads(arguments) == {key: read}


def test_xml_that_is_not_whole() -> None:
    """Without <tool_call> around it, without parameters, without line breaks, without an end."""
    bare = "<function=f>\n<parameter=text>\nx\n</parameter>\n</function>"
    assert parsed([f"I do.\n{bare}\nDone."], "xml") == [
        ("content", "I do."),
        ("call", "f"),
        ("arguments", '{"text": "x"}'),
        ("content", "Done."),
    ]
    flat = "<tool_call><function=f><parameter=whole>3</parameter></function></tool_call>"
    assert parsed([flat], "xml") == [("call", "f"), ("arguments", '{"whole": 3}')]
    none = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    assert parsed([none], "xml") == [("call", "f"), ("arguments", "{}")]
    cut = "<tool_call>\n<function=f>\n<parameter=text>\nlong te"
    assert parsed([cut], "xml") == [("call", "f"), ("arguments", '{"text": "long te')]


def test_texts_are_sent_as_they_come() -> None:
    """A long argument doesn't wait for its end; neither does content."""
    for form, text in (("json", '<tool_call>{"name": "f", "arguments": {"a": "'), ("xml", "")):
        parser = AnswerParser(form, SCHEMAS, can_think=True, is_thinking=False)
        assert parser.push("Hello") == [Delta("content", "Hello")]
        parser.push(text or "<tool_call><function=f><parameter=text>\n")
        assert parser.push("word") == [Delta("arguments", "word")]


MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "<function=",
    "</function>",
    "<parameter=text>", "<parameter=whole>", "</parameter>", "{", "}",
    '{"name": "f", "arguments": ',
    '"', "\\", "\n", "3", "null", "a", " ", "ü",
)  # fmt: skip


def cuts(draw: Any, text: str) -> list[str]:
    """`text` in pieces."""
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(
    data=st.data(),
    form=st.sampled_from(["json", "xml"]),
    text=st.one_of(
        st.lists(st.sampled_from(MARKS), max_size=25).map("".join),
        st.sampled_from(
            [
                "Hm.\n</think>\n\nBoth:\n\n" + json_call('{"a": "b"}') + "\n" + json_call("{}"),
                "<think>\nHm\n</think>\n\n" + xml_call(text="a\nb", whole="3") + xml_call(map="{}"),
            ]
        ),
    ),
    can_think=st.booleans(),
    is_thinking=st.booleans(),
    with_tools=st.booleans(),
)
def test_the_same_however_it_is_cut(
    data: st.DataObject, form: str, text: str, can_think: bool, is_thinking: bool, with_tools: bool
) -> None:
    """In one piece, in any pieces, and character by character."""
    schemas = SCHEMAS if with_tools else None
    options: Any = {"can_think": can_think, "is_thinking": is_thinking}
    whole = parsed([text], form, schemas, **options)
    assert parsed(cuts(data.draw, text), form, schemas, **options) == whole
    assert parsed(list(text), form, schemas, **options) == whole


@given(value=st.text(), number=st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_values_survive(value: str, number: float) -> None:
    """What a template writes of arguments is read as those arguments."""
    arguments = {"text": value, "number": number}
    text = json_call(json.dumps(arguments, ensure_ascii=False))
    *_, (_, read) = parsed([text])
    assert json.loads(read) == arguments
    if "</parameter>" not in value:
        *_, (_, read) = parsed([xml_call(text=value, number=json.dumps(number))], "xml")
        assert json.loads(read) == arguments


@pytest.mark.parametrize(
    ("form", "begin", "token"),
    [
        ("xml", "<tool_call>", "    "),
        ("xml", "<function=", "abcd"),
        ("xml", "<function=f>", "<parameter=t"),
        ("xml", "<function=f><parameter=list>", "[1, "),
        ("json", "<tool_call>", "    "),
        ("json", '<tool_call>{"name": "', "abcd"),
        ("json", '<tool_call>{"name": "', '\\"'),
    ],
)
def test_calls_that_never_come_take_no_time(form: str, begin: str, token: str) -> None:
    """What is waited for is not looked for from the beginning with each token."""
    parser = AnswerParser(form, SCHEMAS, can_think=True, is_thinking=False)
    parser.push(begin)
    for _ in range(20_000):
        parser.push(token)
    parser.end()


@pytest.mark.parametrize("begin", ["", "a", "<think>a"])
def test_blanks_without_end_are_not_read_again(begin: str) -> None:
    """A token's work doesn't grow with the line breaks before it: nothing of them is copied."""
    parser = AnswerParser("json", SCHEMAS, can_think=True, is_thinking=False)
    parser.push(begin)
    parser.push("\n" * 10**6)
    tracemalloc.start()
    try:
        for _ in range(10):
            parser.push("\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10**5
    told = "".join(delta.text for delta in parser.push("b"))
    assert told == "\n" * (10**6 + 10) + "b"


@pytest.mark.parametrize("step", [1, 7, 5_000])
def test_few_blanks_may_precede_the_reasoning(step: int) -> None:
    """More than MAX_BLANKS are an answer's own."""
    for blanks, first in ((MAX_BLANKS, "reasoning"), (MAX_BLANKS + 1, "content")):
        text = " " * blanks + "<think>a</think>b"
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        assert parsed(pieces)[0][0] == first
