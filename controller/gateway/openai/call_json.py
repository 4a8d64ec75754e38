"""A tool call in the form of Qwen3 and Hermes: a JSON object with name and arguments.

<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

import json
import re
from typing import Any

from trt_mtp.controller.gateway.openai.deltas import Call, Delta, Read

END = "</tool_call>"
# what can be sent before the whole object is there: most models write the name first
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
MAX_HEAD_CHARS = 1_024  # of it; a longer one is read with the whole object


class JsonCall:
    """Reads what follows one <tool_call>; the arguments are sent as they come."""

    def __init__(self) -> None:
        self._held = ""
        self._searched = 0  # what is held up to there has no end in it
        self._has_begun = False
        self._is_complete = False  # of the arguments
        self._depth = 0
        self._in_text = self._is_escaped = False
        self._is_long = False  # it has no head that can be sent before the rest

    def push(self, text: str) -> Read:
        """The deltas of `text`, and what follows the call once that is over."""
        self._held += text
        deltas: list[Delta] = []
        if not self._has_begun:
            found = None if self._is_long else _HEAD.match(self._held[:MAX_HEAD_CHARS])
            end = self._held.find(END, self._searched)
            self._searched = max(len(self._held) - len(END), 0)
            if end >= 0 and (found is None or end + len(END) <= found.end()):
                return Read(_whole(self._held[:end], END), self._held[end + len(END) :])
            if found is None:
                self._is_long = len(self._held) >= MAX_HEAD_CHARS
                return Read(deltas, None)
            self._has_begun = True
            deltas.append(Delta("call", _name(found[1])))
            self._held = self._held[found.end() :]
        if not self._is_complete:
            deltas += self._arguments()
        end = self._held.find(END) if self._is_complete else -1
        return Read(deltas, None if end < 0 else self._held[end + len(END) :])

    def end(self) -> list[Delta]:
        """What was held back when the answer ends inside the call."""
        return [] if self._has_begun else _whole(self._held, "")

    def _arguments(self) -> list[Delta]:
        """As much of the arguments as there is, up to the bracket that closes them."""
        for at, char in enumerate(self._held):
            if not self._in_text and char == "<":  # no JSON: the end, it may be
                return self._complete(at)
            self._step(char)
            if self._depth == 0:
                return self._complete(at + 1)
        return self._complete(len(self._held), is_complete=False)

    def _step(self, char: str) -> None:
        if self._in_text:
            self._in_text = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
        elif char == '"':
            self._in_text = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1

    def _complete(self, at: int, *, is_complete: bool = True) -> list[Delta]:
        arguments, self._held = self._held[:at], self._held[at:]
        self._is_complete = is_complete
        return [Delta("arguments", arguments)] if arguments else []


def _whole(text: str, end: str) -> list[Delta]:
    """A call in another order of its keys; text where it is none, up to its `end`."""
    call = _parsed(text)
    if call is None:
        return [Delta("content", f"<tool_call>{text}{end}")]
    return [Delta("call", call.name), Delta("arguments", call.arguments)]


def _name(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:  # an escape that is none
        return text[1:-1]


def _parsed(text: str) -> Call | None:
    try:
        value: Any = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Call(name, arguments)
