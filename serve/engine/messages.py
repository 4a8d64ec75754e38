"""Chat messages as OpenAI's clients send them, in the form that chat templates take."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from trt_mtp.errors import InputError
from trt_mtp.serve.json_weight import is_heavy

Message = dict[str, object]

NO_PARAMETERS = {"type": "object", "properties": {}}
REASONING = ("reasoning_content", "reasoning", "thinking")


class Takes(NamedTuple):
    """What a template renders beside texts as content, and objects as a call's arguments."""

    parts: bool = False  # a list of parts as content
    text_arguments: bool = False


def template_messages(messages: list[Message], takes: Takes) -> list[Message]:
    """`messages` with null values left out, tool arguments as objects, and content as the
    template takes it. That of an assistant who said nothing is empty.

    Raises InputError, which names the place, for arguments that are too much JSON and for content
    that is not text.
    """
    return [
        template_message(message, f"messages[{number}]", takes)
        for number, message in enumerate(messages)
    ]


def template_message(message: Message, place: str, takes: Takes) -> Message:
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
            template_call(call, f"{place}.tool_calls[{number}]", takes)
            for number, call in enumerate(calls)
        ]
    if taken.get("role") == "assistant":  # who may say nothing, by OpenAI's API
        taken.setdefault("content", "")
    if isinstance(taken.get("content"), list):
        taken["content"] = template_content(taken["content"], place, takes)
    return taken


def template_call(call: Any, place: str, takes: Takes) -> Any:
    """A tool call whose arguments are an object, where OpenAI's API has them as JSON text.

    A model's own call may have none, where its answer was cut, say; clients send it back with all
    that follows. The template then gets the text, by itself or as the one argument. Where they are
    left out, null or empty, the call has no arguments.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    text = function.get("arguments")
    if text is None:
        text = ""
    if not isinstance(text, str):
        return call
    if is_heavy(text.encode(errors="replace")):
        raise InputError(f"{place}.function.arguments has too many values or digits")
    arguments: object = text
    with contextlib.suppress(ValueError, RecursionError):
        arguments = (json.loads(text) if text.strip() else None) or {}
    if not isinstance(arguments, dict):
        arguments = text if takes.text_arguments else {"arguments": text}
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


def template_content(parts: Any, place: str, takes: Takes) -> Any:
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
    return parts if takes.parts else "\n".join(texts)
