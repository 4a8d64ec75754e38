"""Messages and tools of a chat request, checked so that what is wrong has a name.

What a chat template makes of them is the variant's business (serve/engine/messages.py).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trt_mtp.controller.gateway.openai.deltas import ToolSchemas
from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.request import MAX_NAME_CHARS

ROLES = ("system", "developer", "user", "assistant", "tool")
_CONTINUED = ("prefix", "partial")  # Mistral's and DeepSeek's name for it, and Qwen's


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ParameterError for a message that no variant could take."""
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            shown = str(role)[:MAX_NAME_CHARS]
            raise ParameterError(
                f"{place}.role is {shown!r}: expected one of {', '.join(ROLES)}", f"{place}.role"
            )
        _check_calls(message, place)
        _check_whole(message, place)
        if isinstance(content, list):
            _check_parts(content, f"{place}.content")
        elif content is None:
            if role != "assistant":
                raise ParameterError(f"{place}.content is missing", f"{place}.content")
        elif not isinstance(content, str):
            raise ParameterError(
                f"{place}.content has to be a text or a list of parts", f"{place}.content"
            )


def _check_calls(message: Mapping[str, Any], place: str) -> None:
    """Raise ParameterError for calls that a template would leave out without a word."""
    calls = message.get("tool_calls")
    if message.get("function_call") is not None:
        raise ParameterError(
            f"{place}.function_call is not supported here: expected tool_calls",
            f"{place}.function_call",
            "unsupported_parameter",
        )
    is_list = isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
    if calls is not None and not is_list:
        raise ParameterError(
            f"{place}.tool_calls has to be a list of objects", f"{place}.tool_calls"
        )


def _check_whole(message: Mapping[str, Any], place: str) -> None:
    """Raise ParameterError for a message that the answer should go on with."""
    for name in _CONTINUED:
        if message.get(name):
            raise ParameterError(
                f"{place}.{name} is not supported here: an answer begins a message and continues "
                "none; send a rendered prompt to /v1/completions in its place",
                f"{place}.{name}",
                "unsupported_parameter",
            )


def _check_parts(parts: Sequence[Any], place: str) -> None:
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise ParameterError(
                f"{place}[{number}] is no part of a message: expected an object such as "
                '{"type": "text", "text": "…"}',
                f"{place}[{number}]",
            )
        kind = part.get("type")
        if kind != "text":
            shown = str(kind)[:MAX_NAME_CHARS]
            raise ParameterError(
                f"{place}[{number}] has the type {shown!r}: only parts of type text are taken",
                f"{place}[{number}]",
                "unsupported_parameter",
            )
        if not isinstance(part.get("text"), str):
            raise ParameterError(f"{place}[{number}].text has to be a text", f"{place}[{number}]")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise ParameterError for a tool that is not a function with a name."""
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        function = tool.get("function")
        if tool.get("type", "function") != "function":
            raise ParameterError(f"{place}: only tools of type function are taken", place)
        if not isinstance(function, Mapping):
            raise ParameterError(
                f"{place}.function has to be an object with the function's name, description and "
                "parameters",
                place,
            )
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ParameterError(f"{place}.function.name has to be a text", place)


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> ToolSchemas:
    """The schemas of the tools' parameters, as far as there are any.

    They are looked at when a call has such a parameter: resolving all of them may take gigabytes.
    """
    functions = [tool["function"] for tool in tools]
    stated = {function["name"]: function.get("parameters") for function in functions}
    return {name: each for name, each in stated.items() if isinstance(each, Mapping)}


def json_text(value: Any, name: str) -> str:
    """`value` as JSON that can be sent; raises ParameterError for half a surrogate pair in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ParameterError(f"{name} has half a surrogate pair in it", name) from None
    return text
