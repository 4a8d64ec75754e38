"""A request as a JSON object: in our own short form, in OpenAI's, or in Triton's."""

import json
from collections.abc import Mapping
from typing import Any

from trt_mtp.controller.app_offset import app_key
from trt_mtp.controller.pasted_text import asks_of_pasted_text
from trt_mtp.controller.request import WINDOW_CHARS, RequestFeatures, content_text, is_format
from trt_mtp.errors import InputError
from trt_mtp.files import nearest
from trt_mtp.serve.contract import INPUTS

_KEYS = (
    "prompt", "messages", "tools", "response_format", "temperature", "max_tokens", "thinking",
    "num_prompt_tokens", "task", "draft_length", "session_id", "tenant", "latency_class",
    "system", "id", "prediction",
)  # fmt: skip
_ALSO = {
    "text_input": "prompt",
    "sampling_param_temperature": "temperature",
    "sampling_param_max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "enable_thinking": "thinking",
}
_CHANGE_NOTHING = {  # of what is decided
    "model", "stream", "stream_options", "top_p", "top_k", "min_p", "seed", "stop", "n", "user",
    "tool_choice", "presence_penalty", "frequency_penalty", "ignore_eos", "min_tokens",
    *(spec.name for spec in INPUTS),
}  # fmt: skip


def features_from_json(value: Any) -> RequestFeatures:
    """The features of a request given as a JSON object with `prompt` or `messages`.

    Keys inside `parameters` count as its own, as in Triton's generate requests. Raises InputError
    for an unknown key or a value of the wrong kind.
    """
    if not isinstance(value, dict):
        raise InputError("a request is a JSON object with prompt or messages")
    values = _by_known_keys(value)
    if ("prompt" in values) == ("messages" in values):
        raise InputError("a request has either prompt or messages")
    system, text, last = _texts(values)
    return RequestFeatures(
        head=text[:WINDOW_CHARS],
        tail=text[-WINDOW_CHARS:],
        num_chars=len(text),
        system=system[:WINDOW_CHARS],
        has_tools=bool(values.get("tools")),
        has_response_format=is_format(values.get("response_format")),
        has_prediction=bool(values.get("prediction")),
        temperature=_number(values, "temperature", 0.0),
        max_tokens=int(_number(values, "max_tokens", 128)),
        thinking=values.get("thinking") is True,
        num_prompt_tokens=_whole(values, "num_prompt_tokens"),
        hint_task=None if values.get("task") == "auto" else _text(values, "task"),
        hint_draft_length=_draft_length(values),
        session_id=_text(values, "session_id"),
        tenant=_text(values, "tenant"),
        app=app_key(system[:WINDOW_CHARS]),
        latency_class=_text(values, "latency_class"),
        asks_of_pasted_text=asks_of_pasted_text(last, last, len(last)),
    )


def _by_known_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a decision depends on, by the keys of `_KEYS`."""
    parameters = value.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError("parameters has to be a JSON object")
    given = {key: item for key, item in value.items() if key != "parameters"} | parameters
    values: dict[str, Any] = {}
    for key, item in given.items():
        name = _ALSO.get(key, key)
        if name in _KEYS:
            values[name] = item
        elif name not in _CHANGE_NOTHING:
            raise InputError(
                f"unknown key {key[:80]!r}{nearest(key[:80], _KEYS)} (known: {', '.join(_KEYS)})"
            )
    return values


def _texts(values: Mapping[str, Any]) -> tuple[str, str, str]:
    """The system prompt, the user's text and the last turn of it."""
    if "prompt" in values:
        text = _text(values, "prompt") or ""
        return _text(values, "system") or "", text, text
    messages = values["messages"]
    if isinstance(messages, str):  # as in the tensor of that name
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            messages = None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise InputError("messages is a list of objects with role and content")
    system = "\n".join(content_text(m) for m in messages if m.get("role") == "system")
    turns = [content_text(m) for m in messages if m.get("role") not in ("system", "assistant")]
    return system, "\n".join(turns), turns[-1] if turns else ""


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} is {value!r:.80}: expected a text")
    return value


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise InputError(f"{key} is {value!r:.80}: expected a number that is not negative")
    return float(value)


def _whole(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key} is {value!r:.80}: expected a whole number that is not negative")
    return value


def _draft_length(values: Mapping[str, Any]) -> int | None:
    value = values.get("draft_length")
    if value == "auto":
        return None
    if isinstance(value, str) and value.isdecimal() and len(value) <= 4:  # as a parameter may be
        return int(value)
    return _whole(values, "draft_length")
