"""A tool call in the form of Qwen3-Coder and Qwen3.5: tags, values without quotes.

<tool_call>
<function=weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>

A value is what the tool's schema says it is; one that doesn't fit is a text.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from trt_mtp.controller.gateway.openai.deltas import Delta, Read, ToolSchemas, open_end
from trt_mtp.serve.chat_format import parameter_kinds

END = "</tool_call>"
FUNCTION_END = "</function>"
VALUE_END = "</parameter>"
# with bounds, so that reading takes a time that grows with the text, whatever a model writes
MAX_HEAD_CHARS = 1_024
_FUNCTION = re.compile(r"\s{0,256}<function=([^<>\n]{0,256})>")
_NEXT = re.compile(r"<parameter=([^<>\n]{0,256})>|</function>|</tool_call>")
MAX_TAG_CHARS = len("<parameter=>") + 256
# of a call's first values, which may tell what the types of others are
MAX_VALUES = 8
MAX_VALUE_CHARS = 256
_TEXT_END = "\n" + VALUE_END  # the line break belongs to the form


class XmlCall:
    """Reads one call; values that are texts are sent as they come, others whole."""

    def __init__(self, schemas: ToolSchemas, *, is_bare: bool = False) -> None:
        """`is_bare` for a call without <tool_call> around it, which models forget at times."""
        self._schemas = schemas
        self._end = FUNCTION_END if is_bare else END
        self._begin = "" if is_bare else "<tool_call>"
        self._held = ""
        self._schema: Mapping[str, Any] | None = None  # of the parameters; None before the name
        self._num_values = 0
        self._searched = 0  # what is held up to there has no end in it
        self._kinds: frozenset[str] | None = None  # of the value that is being read
        self._values: dict[str, Any] = {}  # that were read: the first ones, without long texts
        self._key = ""
        self._text = ""  # the beginning of the value, where that is a text
        self._is_first = False  # the line break before it was not seen yet
        self._is_closed = False  # the arguments are complete

    def push(self, text: str) -> Read:
        """The deltas of `text`, and what follows the call once that is over."""
        self._held += text
        deltas: list[Delta] = []
        if self._schema is None:
            found = _FUNCTION.match(self._held[:MAX_HEAD_CHARS])
            end = self._held.find(END, self._searched)
            self._searched = max(len(self._held) - len(END), 0)
            if end >= 0 and (found is None or end + len(END) <= found.end()):
                content = f"{self._begin}{self._held[:end]}{END}"
                return Read([Delta("content", content)], self._held[end + len(END) :])
            if found is None:
                return Read([], None)
            name = found[1].strip()
            self._schema = self._schemas.get(name, {})
            deltas.append(Delta("call", name))
            self._held = self._held[found.end() :]
        while not self._is_closed and self._step(deltas):
            pass
        end = self._held.find(self._end) if self._is_closed else -1
        return Read(deltas, None if end < 0 else self._held[end + len(self._end) :])

    def end(self) -> list[Delta]:
        """What was held back when the answer ends inside the call."""
        if self._schema is None:
            return [Delta("content", self._begin + self._held)]
        return []

    def _step(self, deltas: list[Delta]) -> bool:
        """Read one tag, or of a value what is there; false where more text is needed."""
        if self._kinds is not None:
            return self._value(deltas, self._kinds)
        found = _NEXT.search(self._held)
        if found is None:
            self._held = self._held[-MAX_TAG_CHARS:]  # between tags nothing counts
            return False
        if found[1] is None:
            self._is_closed = True  # and the tag stays, it may end the call
            self._held = self._held[found.start() :]
            deltas.append(Delta("arguments", "}" if self._num_values else "{}"))
            return False
        key = found[1].strip()
        self._held = self._held[found.end() :]
        assert self._schema is not None
        self._kinds, self._is_first = parameter_kinds(self._schema, key, self._values), True
        self._key, self._text = key, ""
        self._searched = 0
        opening = ", " if self._num_values else "{"
        self._num_values += 1
        deltas.append(Delta("arguments", f"{opening}{json.dumps(key, ensure_ascii=False)}: "))
        if self._kinds == {"string"}:
            deltas.append(Delta("arguments", '"'))
        return True

    def _value(self, deltas: list[Delta], kinds: frozenset[str]) -> bool:
        if self._is_first:
            if not self._held:
                return False
            self._held = self._held.removeprefix("\n")
            self._is_first = False
        is_text = kinds == {"string"}
        end = self._held.find(VALUE_END, self._searched)
        if end < 0:
            self._searched = 0 if is_text else max(len(self._held) - len(VALUE_END), 0)
            if is_text:
                keep = open_end(self._held, (_TEXT_END, VALUE_END))
                self._send(deltas, len(self._held) - keep)
            return False
        value = self._held[:end].removesuffix("\n")
        if is_text:
            self._send(deltas, len(value))
            deltas.append(Delta("arguments", '"'))
            self._keep(self._text)
        else:
            found = typed(value, kinds)
            deltas.append(Delta("arguments", json.dumps(found, ensure_ascii=False)))
            self._keep(found)
        self._held = self._held[self._held.find(VALUE_END, self._searched) + len(VALUE_END) :]
        self._kinds = None
        return True

    def _send(self, deltas: list[Delta], size: int) -> None:
        """Send `size` characters of a text, escaped as inside quotes."""
        if size:
            text = json.dumps(self._held[:size], ensure_ascii=False)[1:-1]
            room = MAX_VALUE_CHARS + 1 - len(self._text)
            self._text += self._held[: min(size, room)]
            deltas.append(Delta("arguments", text))
            self._held = self._held[size:]

    def _keep(self, value: Any) -> None:
        """Remember a value that may be the `const` of an alternative."""
        is_short = not isinstance(value, str) or len(value) <= MAX_VALUE_CHARS
        if is_short and not isinstance(value, list | dict) and len(self._values) < MAX_VALUES:
            self._values[self._key] = value


def typed(value: str, kinds: frozenset[str]) -> Any:
    """`value` as the first of `kinds` that it can be, else as the text that it is.

    >>> typed("3", frozenset({"integer", "null"})), typed("three", frozenset({"integer"}))
    (3, 'three')
    """
    for kind, read in _READERS.items():
        if kind in kinds:
            try:
                return read(value.strip())
            except (ValueError, KeyError, RecursionError):
                continue
    return value


def _null(text: str) -> None:
    if text.lower() not in ("null", "none"):
        raise ValueError(text)


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _number(text: str) -> int | float:
    number: Any = json.loads(text)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number):
        raise ValueError(text)
    return number  # type: ignore[no-any-return]


def _integer(text: str) -> int:
    number = _number(text)
    if not isinstance(number, int):
        raise ValueError(text)
    return number


def _json(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return read


_READERS: Mapping[str, Callable[[str], Any]] = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "array": _json(list),
    "object": _json(dict),
}
