"""Chat messages as OpenAI's clients send them, in the form that chat templates take."""

import json
from collections.abc import Mapping
from typing import Any

from trt_mtp.errors import InputError
from trt_mtp.serve.json_weight import is_heavy

Message = dict[str, object]

NO_PARAMETERS = {"type": "object", "properties": {}}
REASONING = ("reasoning_content", "reasoning", "thinking")


def template_messages(messages: list[Message], *, takes_parts: bool) -> list[Message]:
    """`messages` with null values left out, tool arguments as objects, and content as the
    template takes it: a text, or (`takes_parts`) also a list of parts. That of an assistant who
    said nothing is empty.

    Raises InputError, which names the place, for arguments that are not a JSON object and for
    content that is not text.
    """
    return [
        template_message(message, f"messages[{number}]", takes_parts=takes_parts)
        for number, message in enumerate(messages)
    ]


def template_message(message: Message, place: str, *, takes_parts: bool) -> Message:
    """One message; `place` is its name in errors."""
    taken = {key: value for key, value in message.items() if value is not None}
    if taken.get("role") == "developer":  # OpenAI's newer name, which no Qwen template knows
        taken["role"] = "system"
    reasoning = next((taken[key] for key in REASONING if key in taken), None)
    if reasoning is not None:
        taken["reasoning_content"] = reasoning
    calls = taken.get("tool_calls")
    if isinstance(calls, list):
        taken["tool_calls"] = [
            template_call(call, f"{place}.tool_calls[{number}]")
            for number, call in enumerate(calls)
        ]
    if taken.get("role") == "assistant":  # who may say nothing, by OpenAI's API
        taken.setdefault("content", "")
    if isinstance(taken.get("content"), list):
        taken["content"] = template_content(taken["content"], place, takes_parts=takes_parts)
    return taken


def template_call(call: Any, place: str) -> Any:
    """A tool call whose arguments are an object, where OpenAI's API has them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    text = function["arguments"]
    if is_heavy(text.encode(errors="replace")):
        raise InputError(f"{place}.function.arguments has too many values")
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"{place}.function.arguments is {text!r:.60}, expected a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def template_tools(tools: list[Message]) -> list[Message]:
    """`tools` with a whole schema for functions that take nothing, which OpenAI's API and MCP let
    clients state without properties, or not at all.
    """
    return [template_tool(tool) for tool in tools]


def template_tool(tool: Message) -> Message:
    """One tool whose parameters are an object with properties, as templates look at them."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    stated = function.get("parameters")
    if stated is not None and (not isinstance(stated, Mapping) or "properties" in stated):
        return tool
    return {**tool, "function": {**function, "parameters": {**NO_PARAMETERS, **(stated or {})}}}


def template_content(parts: Any, place: str, *, takes_parts: bool) -> Any:
    """Parts of type text as they are, or joined by line breaks for a template that takes a text."""
    texts = []
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping):
            return parts  # not OpenAI's form, which is the template's business
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(
                f"{place}.content[{number}] has the type {part.get('type')!r:.60}; "
                "this model takes parts of type text only"
            )
        texts.append(part["text"])
    return parts if takes_parts else "\n".join(texts)
