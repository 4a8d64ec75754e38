"""What an answer's text is read as: content, reasoning, and calls with their arguments."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["content", "reasoning", "call", "arguments"]
ToolSchemas = Mapping[str, Mapping[str, Any]]  # tool -> JSON schema of its parameters


class Delta(NamedTuple):
    """A piece of the answer; "call" begins one, with the tool's name as its text."""

    kind: Kind
    text: str


class Call(NamedTuple):
    """A whole call."""

    name: str
    arguments: str  # JSON


class Read(NamedTuple):
    """What a call's reader made of a text; `rest` is None while the call goes on."""

    deltas: list[Delta]
    rest: str | None


class CallReader(Protocol):
    """Reads one call, in whatever pieces its text comes."""

    def push(self, text: str) -> Read:
        """The deltas of `text`, and what follows the call once that is over."""

    def end(self) -> list[Delta]:
        """What was held back when the answer ends inside the call."""


def open_end(text: str, marks: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`.

    >>> open_end("a <to", ("<tool_call>", "<think>"))
    3
    """
    longest = max(map(len, marks)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
