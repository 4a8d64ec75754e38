"""Large JSON read and written in pieces: one call for all of it would hold up everybody else.

To be used in a thread, which makes way for others between two calls.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 5  # to which lists and objects are taken apart: the places of a choice's logprobs
_BETWEEN = re.compile(r"[\s,]*")
_AT_ONCE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumped(value: Any, *, in_pieces: bool) -> bytes:
    """The JSON of a value, in UTF-8.

    >>> dumped({"a": [1, {"b": None}], "c": "é"}, in_pieces=True).decode()
    '{"a":[1,{"b":null}],"c":"é"}'
    """
    if not in_pieces:  # which takes three times as long
        return _AT_ONCE(value).encode()
    return b"".join([piece.encode() for piece in _pieces(value, MAX_DEPTH)])


def loaded_list(text: str) -> list[Any]:
    """The values of a JSON list; raises ValueError for anything else.

    >>> loaded_list('[{"a": 1}, 2]')
    [{'a': 1}, 2]
    """
    decode, values = json.JSONDecoder().raw_decode, list[Any]()
    at = _after(text, text.index("[") + 1)
    while not text.startswith("]", at):
        value, end = decode(text, at)
        values.append(value)
        at = _after(text, end)
    return values


def _after(text: str, at: int) -> int:
    """Where the next value begins, or the end."""
    found = _BETWEEN.match(text, at)
    return at if found is None else found.end()


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if depth and value and isinstance(value, dict):
        before = "{"
        for key, item in value.items():
            yield f"{before}{_AT_ONCE(key)}:"
            yield from _pieces(item, depth - 1)
            before = ","
        yield "}"
    elif depth and value and isinstance(value, list):
        before = "["
        for item in value:
            yield before
            yield from _pieces(item, depth - 1)
            before = ","
        yield "]"
    else:
        yield _AT_ONCE(value)
