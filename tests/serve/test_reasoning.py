"""Reasoning tokens: those that the gateway shows as such, however the answer comes in chunks."""

from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.gateway.openai.answer_parser import AnswerParser
from trt_mtp.serve.chat_format import ChatFormat, ChatOptions
from trt_mtp.serve.reasoning import Reasoning, ReasoningCounter

TOKENS = ("<think>", "</think>", "<tool_call>", " ", "a", "b", "c")
QWEN = ChatFormat("json", True, (True, True, False), (False, True, False))


def encode(text: str) -> tuple[int, ...]:
    """A token where the text is one, else several."""
    return (TOKENS.index(text),) if text in TOKENS else (90, 91)


def counter(
    chat: ChatOptions | None, form: ChatFormat, emitted: tuple[int, ...] = (), code: Any = encode
) -> ReasoningCounter | None:
    """A counter of an answer to a prompt."""
    start = Reasoning(code, form).start(chat)
    return None if start is None else start.counter(emitted)


@given(
    tokens=st.lists(st.integers(0, len(TOKENS) - 1), max_size=30),
    cuts=st.lists(st.integers(0, 6), min_size=30, max_size=30),
    num_emitted=st.integers(0, 10),
    thinking=st.sampled_from([None, True, False]),
    has_tools=st.booleans(),
)
def test_the_count_is_of_what_the_gateway_shows(
    tokens: list[int], cuts: list[int], num_emitted: int, thinking: bool | None, has_tools: bool
) -> None:
    """As many as the answer's parser reads as reasoning; other tokens have one character."""
    schemas: Any = {"f": {}} if has_tools else None
    is_open = QWEN.is_open(thinking, has_tools=has_tools)
    parser = AnswerParser("json", schemas, can_think=True, is_thinking=is_open)
    deltas = parser.push("".join(TOKENS[token] for token in tokens)) + parser.end()
    shown = "".join(delta.text for delta in deltas if delta.kind == "reasoning")

    emitted, rest = tokens[:num_emitted], tokens[num_emitted:]
    counts = counter(ChatOptions(thinking, has_tools), QWEN, tuple(emitted))
    assert counts is not None
    for start, end in pairwise(accumulate([0, *cuts, len(rest)])):
        counts.push(rest[start:end])
    for mark in TOKENS[:3]:  # marks that are text here
        shown = shown.replace(mark, "x")
    assert counts.num_tokens == len(shown)


def test_nothing_to_count() -> None:
    """No chat, or a checkpoint that doesn't think: none, whatever the answer has."""
    for chat, form in ((None, QWEN), (ChatOptions(None, False), ChatFormat())):
        counts = counter(chat, form)
        assert counts is not None
        counts.push([0, 4, 4, 1])
        assert counts.num_tokens == 0


def test_marks_that_are_no_tokens() -> None:
    """Reasoning whose end is several tokens is not counted, and nothing is claimed."""
    assert counter(ChatOptions(None, False), QWEN, code=lambda _: (90, 91)) is None
