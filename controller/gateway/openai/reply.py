"""One answer's text, read as the client wants it: as it is, or for reasoning and tool calls."""

import secrets
from collections.abc import Iterator
from typing import Any

from trt_mtp.controller.gateway.openai.answer_parser import AnswerParser
from trt_mtp.controller.gateway.openai.asked import Asked
from trt_mtp.controller.gateway.openai.deltas import Delta
from trt_mtp.serve.chat_format import ChatFormat

PIECE_CHARS = 4_096


class Reply:
    """Deltas of one choice, as OpenAI has them."""

    def __init__(self, asked: Asked, chat_format: ChatFormat) -> None:
        """`chat_format` is that of the variant which begins the answer."""
        self.num_calls = 0
        self._parser: AnswerParser | None = None
        has_tools = asked.schemas is not None
        if asked.is_chat and (has_tools or chat_format.can_think):
            self._parser = AnswerParser(
                chat_format.tool_calls,
                asked.schemas,
                can_think=chat_format.can_think,
                is_thinking=chat_format.is_open(asked.enable_thinking, has_tools=has_tools),
            )

    @property
    def is_plain(self) -> bool:
        """Is all of it content, as it comes?"""
        return self._parser is None

    def push(self, text: str) -> list[Delta]:
        """What `text` makes final."""
        if self._parser is None:
            return [Delta("content", text)] if text else []
        return self._parser.push(text)

    def end(self) -> list[Delta]:
        """What was held back, when the answer is over."""
        return [] if self._parser is None else self._parser.end()

    def delta(self, delta: Delta) -> dict[str, Any]:
        """A delta as OpenAI has it; id and name of a call come once."""
        if delta.kind == "content":
            return {"content": delta.text}
        if delta.kind == "reasoning":  # of vLLM, by its older name and by its newer one
            return {"reasoning_content": delta.text, "reasoning": delta.text}
        function = {"arguments": delta.text}
        if delta.kind == "call":
            self.num_calls += 1
            function = {"name": delta.text, "arguments": ""}
        call: dict[str, Any] = {"index": self.num_calls - 1, "function": function}
        if delta.kind == "call":
            call |= {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return {"tool_calls": [call]}

    def finish_reason(self, reason: str) -> str:
        """Why the answer is over; one that was cut says so, even if it has calls."""
        return "tool_calls" if self.num_calls and reason == "stop" else reason


def _deltas(reply: Reply, text: str) -> Iterator[Delta]:
    """All that a text is, read in pieces: what is left of a piece is copied at each mark in it."""
    for at in range(0, len(text), PIECE_CHARS):
        yield from reply.push(text[at : at + PIECE_CHARS])
    yield from reply.end()


def whole_message(reply: Reply, text: str) -> dict[str, Any]:
    """The message that has all of a text."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []  # of each call
    for delta in _deltas(reply, text):
        if delta.kind in texts:
            texts[delta.kind].append(delta.text)
        elif delta.kind == "call":
            [call] = reply.delta(delta)["tool_calls"]
            calls.append({key: call[key] for key in ("id", "type", "function")})
            arguments.append([])
        else:
            arguments[-1].append(delta.text)
    content, reasoning = "".join(texts["content"]), "".join(texts["reasoning"])
    for call, pieces in zip(calls, arguments, strict=True):
        call["function"]["arguments"] = "".join(pieces)
    message: dict[str, Any] = {"role": "assistant", "content": content or None, "refusal": None}
    if not (calls or reasoning):
        message["content"] = content
    if reasoning:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    return message | ({"tool_calls": calls} if calls else {})
