"""What an answer has to be: `response_format`, a forced call, or vLLM's names for the same.

It becomes the variants' input `guided_decoding`, whose values they check.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.messages import json_text
from trt_mtp.controller.gateway.openai.schema import ChatRequest, CommonRequest
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.serve.contract import MAX_GUIDED_BYTES

# of vLLM's structured_outputs, and with a prefix on their own -> ours
_VLLM = {"json": "json_schema", "regex": "regex", "choice": "choice", "json_object": "json_object"}


def format_of(request: CommonRequest) -> dict[str, Any] | None:
    """The form that the text of an answer is to have; None for any.

    Raises ParameterError for one that doesn't exist, and for several at once.
    """
    given = list(_formats(request))
    if len(given) > 1:
        names = " and ".join(name for name, _ in given)
        raise ParameterError(f"{names} ask for different forms: give one of them", given[1][0])
    return given[0][1] if given else None


def forced_call(request: ChatRequest) -> dict[str, Any] | None:
    """The calls that an answer has to consist of; None where it may be what the model likes.

    Raises ParameterError for a tool_choice that is none, or that names no tool.
    """
    choice = request.tool_choice
    if choice in (None, "none", "auto"):
        return None
    wanted: Any = choice if choice == "required" else {"name": _function_name(choice)}
    names = [tool["function"]["name"] for tool in request.tools or ()]
    if not names:
        raise ParameterError("tool_choice forces a call, and there are no tools", "tool_choice")
    if choice != "required" and wanted["name"] not in names:
        shown = wanted["name"][:MAX_NAME_CHARS]
        raise ParameterError(f"tool_choice names {shown!r}, which is none of tools", "tool_choice")
    return {"tool_choice": wanted, **_parallel(request)}


def guided_chat(request: ChatRequest) -> dict[str, Any] | None:
    """What a chat's answer has to be: calls, a form, or one of both where tools may be called.

    Raises ParameterError as `format_of` and `forced_call` do.
    """
    form, forced = format_of(request), forced_call(request)
    if forced or not form or not request.tools or request.tool_choice == "none":
        return forced or form
    if not form.keys() & {"json_schema", "json_object"}:
        raise ParameterError(
            "structured_outputs leaves no room for calls of tools: leave one of them out, or send "
            "tool_choice none or required",
            "structured_outputs",
        )
    return {**form, "tool_choice": "auto", **_parallel(request)}


def _parallel(request: ChatRequest) -> dict[str, Any]:
    return {"parallel_tool_calls": request.parallel_tool_calls is not False}


def guided_text(guided: Mapping[str, Any], name: str) -> str:
    """The input's JSON; raises ParameterError for one that is too long for any variant."""
    text = json_text(guided, name)
    _check_size(text, name, name)
    return text


def _check_size(text: str, place: str, param: str) -> None:
    num_bytes = len(text.encode(errors="replace"))
    if num_bytes > MAX_GUIDED_BYTES:
        raise ParameterError(
            f"{place} has {num_bytes} bytes: at most {MAX_GUIDED_BYTES} are taken", param
        )


def _function_name(choice: str | dict[str, Any]) -> str:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    is_function = isinstance(choice, dict) and choice.get("type", "function") == "function"
    if not is_function or not isinstance(name, str):
        raise ParameterError(
            f"tool_choice is {str(choice)[:MAX_NAME_CHARS]!r}: expected none, auto, required, or "
            "the name of a function",
            "tool_choice",
        )
    return name


def _formats(request: CommonRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each form that is given, with the parameter that gives it."""
    if request.response_format:
        form = _response_format(request.response_format)
        if form is not None:
            yield "response_format", form
    for name, value in (request.structured_outputs or {}).items():
        if value is not None:
            yield "structured_outputs", _vllm_form(f"structured_outputs.{name}", name, value)
    for name in ("json", "regex", "choice"):
        value = getattr(request, f"guided_{name}")
        if value is not None:
            yield f"guided_{name}", _vllm_form(f"guided_{name}", name, value)


def _response_format(value: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = value.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object" and value.get("schema") is None:
        return {"json_object": True}
    if kind not in ("json_object", "json_schema"):
        raise ParameterError(
            f"response_format.type is {str(kind)[:MAX_NAME_CHARS]!r}: expected text, json_object "
            "or json_schema",
            "response_format",
        )
    # llama.cpp and others have the schema of a json_object there
    is_object = kind == "json_object"
    place = "response_format" if is_object else "response_format.json_schema"
    stated = value if is_object else value.get("json_schema")
    schema = stated.get("schema") if isinstance(stated, dict) else None
    if not isinstance(schema, dict):
        raise ParameterError(f"{place}.schema has to be an object", "response_format")
    return {"json_schema": schema}


def _vllm_form(place: str, name: str, value: Any) -> dict[str, Any]:
    param = place.partition(".")[0]
    if name not in _VLLM:
        raise ParameterError(
            f"{place[:MAX_NAME_CHARS]} is not supported here: expected one of {', '.join(_VLLM)}",
            param,
            "unsupported_parameter",
        )
    if name == "json" and isinstance(value, str):
        _check_size(value, place, param)  # before it is read, which holds up everybody else
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ParameterError(f"{place} is not JSON", param) from None
    return {_VLLM[name]: value}
