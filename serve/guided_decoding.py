"""The input `guided_decoding`: what an answer has to be, as JSON, checked before an engine sees it.

An object with one form of FORMS, and beside `tool_choice` perhaps `parallel_tool_calls`. Where
JSON is the form, `tool_choice` "auto" lets the answer be calls of tools instead.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trt_mtp.errors import InputError
from trt_mtp.files import nearest
from trt_mtp.serve.contract import GUIDED, MAX_CHOICES, MAX_GUIDED_BYTES
from trt_mtp.serve.engine.base import Guided

ANY_TOOL = "required"  # as tool_choice: a call of one of the tools
MAY_CALL = "auto"  # as tool_choice: calls, or what another key asks for
JSON_FORMS = ("json_schema", "json_object")
PARALLEL = "parallel_tool_calls"
_MAX_SHOWN_CHARS = 80


def read_guided(
    text: str, tools: Sequence[Mapping[str, Any]] = (), *, may_think: bool = False
) -> Guided:
    """What `text`, a JSON object, asks of the answer; `tools` are the request's.

    Raises InputError for anything else, with the key that is wrong.
    """
    num_bytes = len(text.encode())
    if num_bytes > MAX_GUIDED_BYTES:
        raise InputError(f"{GUIDED} has {num_bytes} bytes; at most {MAX_GUIDED_BYTES} are taken")
    values = _object(text)
    may_call = values.get("tool_choice") == MAY_CALL
    form = _form_of(values, ("tool_choice",) if may_call else ())
    if form == "tool_choice":
        return _calls(values, tools, may_think)
    if may_call and form not in JSON_FORMS:
        raise InputError(f"{GUIDED}.tool_choice {MAY_CALL} goes with {' or '.join(JSON_FORMS)}")
    if PARALLEL in values and not may_call:
        raise InputError(f"{GUIDED}.{PARALLEL} goes with tool_choice, and this one has {form}")
    value = {"type": "object"} if form == "json_object" else values[form]
    kind: Any = "json_schema" if form == "json_object" else form
    if not may_call:
        return Guided(kind, value, may_think=may_think)
    by_name, is_single = _tools(tools), not _is_parallel(values)
    return Guided(kind, value, tuple(by_name.values()), is_single, may_think)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{GUIDED} is not JSON (column {error.pos + 1}: {error.msg})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{GUIDED} is nested too deeply, or has too long a number") from None
    if not isinstance(value, dict):
        raise InputError(f"{GUIDED} must be a JSON object with one of {', '.join(FORMS)}")
    return value


def _form_of(values: Mapping[str, Any], beside: Sequence[str]) -> str:
    """The one form that is given, but for those that are beside it, checked."""
    for name in values:
        if name not in FORMS and name != PARALLEL:
            shown = name[:_MAX_SHOWN_CHARS]
            raise InputError(f"{GUIDED} has no key {shown!r}{nearest(shown, FORMS)}")
    given = [name for name in FORMS if name in values and name not in beside]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(f"{GUIDED} takes one of {', '.join(FORMS)}; this one has {found}")
    expected, is_right = FORMS[given[0]]
    if not is_right(values[given[0]]):
        raise InputError(f"{GUIDED}.{given[0]} has to be {expected}")
    return given[0]


def _calls(
    values: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], may_think: bool
) -> Guided:
    wanted, is_parallel, by_name = values["tool_choice"], _is_parallel(values), _tools(tools)
    if wanted == ANY_TOOL:
        return Guided("tool_choice", "", tuple(by_name.values()), not is_parallel, may_think)
    name = wanted["name"]
    if name not in by_name:
        shown = name[:_MAX_SHOWN_CHARS]
        raise InputError(f"{GUIDED}.tool_choice names {shown!r}{nearest(shown, by_name)}, no tool")
    return Guided("tool_choice", name, (by_name[name],), True, may_think)


def _is_parallel(values: Mapping[str, Any]) -> bool:
    is_parallel = values.get(PARALLEL, True)
    if not isinstance(is_parallel, bool):
        raise InputError(f"{GUIDED}.{PARALLEL} has to be true or false")
    return is_parallel


def _tools(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The tools by name."""
    if len(json.dumps(tools)) > MAX_GUIDED_BYTES:
        raise InputError(
            f"{GUIDED}.tool_choice goes with tools of at most {MAX_GUIDED_BYTES} bytes"
        )
    by_name = {_tool_name(tool, at): tool for at, tool in enumerate(tools)}
    if not by_name:
        raise InputError(f"{GUIDED}.tool_choice goes with tools, and this request has none")
    return by_name


def _tool_name(tool: Mapping[str, Any], at: int) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"tools[{at}].function.name has to be a text")
    return name


def _is_choice(value: Any) -> bool:
    is_list = isinstance(value, list) and 0 < len(value) <= MAX_CHOICES
    return is_list and all(isinstance(text, str) and text for text in value)


def _is_tool_choice(value: Any) -> bool:
    named = value.get("name") if isinstance(value, dict) and len(value) == 1 else None
    return value == ANY_TOOL or (isinstance(named, str) and named != "")


# form -> what its value has to be, and whether it is
FORMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "json_schema": (
        "a JSON schema: an object, or true",
        lambda v: isinstance(v, dict) or v is True,
    ),
    "json_object": ("true", lambda v: v is True),
    "regex": ("a regular expression", lambda v: isinstance(v, str) and v != ""),
    "choice": (f"a list of 1 to {MAX_CHOICES} texts", _is_choice),
    "tool_choice": (f'"{ANY_TOOL}", or {{"name": NAME}} of one of the tools', _is_tool_choice),
}
