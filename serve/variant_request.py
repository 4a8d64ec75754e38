"""One Triton request, checked and turned into an engine request."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS, OUTPUT_FLAGS, PARAMETERS, PROMPT_INPUTS
from trt_mtp.serve.engine.base import Engine, Request, SamplingParams

Inputs = Mapping[str, NDArray[Any]]

PREFIX = "sampling_param_"  # before the names of the fields of SamplingParams
SAMPLING_FIELDS = ("max_tokens", "temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """What to run and how to answer."""

    request: Request
    is_streaming: bool
    echo: str  # the prompt, where it is to be part of the answer
    omitted: frozenset[str]  # outputs that flags leave out


def read_request(inputs: Inputs, parameters: str, engine: Engine) -> VariantRequest:
    """The request whose tensors are `inputs` and whose parameters are the JSON object `parameters`.

    Raises InputError when it can't be run; the engine checks ranges and lengths on submission.
    """
    _check_parameters(json.loads(parameters) if parameters else {})
    flags = {name: bool(inputs[name].item()) for name in OUTPUT_FLAGS if name in inputs}
    return VariantRequest(
        request=Request(
            _prompt_ids(inputs, engine),
            _sampling(inputs),
            _emitted_ids(inputs),
            "return_margin" in inputs and bool(inputs["return_margin"].item()),
        ),
        is_streaming="streaming" in inputs and bool(inputs["streaming"].item()),
        echo=_echo(inputs),
        omitted=frozenset[str]().union(
            *(OUTPUT_FLAGS[name] for name, is_wanted in flags.items() if not is_wanted)
        ),
    )


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Triton's HTTP `generate` makes a parameter of every key that is not an input."""
    for name in parameters:
        if name not in PARAMETERS:
            known = {spec.name.removeprefix(PREFIX): spec.name for spec in INPUTS}
            known |= {parameter: parameter for parameter in PARAMETERS}
            match = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
            hint = f"; did you mean {known[match[0]]}?" if match else ""
            raise InputError(f"unknown request parameter {name!r}{hint}")


def _prompt_ids(inputs: Inputs, engine: Engine) -> tuple[int, ...]:
    given = [name for name in PROMPT_INPUTS if name in inputs]
    if len(given) != 1:
        raise InputError(
            f"expected exactly one of the inputs {', '.join(PROMPT_INPUTS)}; "
            f"this request has {' and '.join(given) or 'none'}"
        )
    if "tools" in inputs and given != ["messages"]:
        raise InputError(f"tools goes with messages; this request has {given[0]}")
    if given == ["input_ids"]:
        return tuple(inputs["input_ids"].tolist())
    if given == ["text_input"]:
        return engine.encode(_text(inputs, "text_input"))
    tools = _objects(inputs, "tools") if "tools" in inputs else None
    return engine.encode_chat(_objects(inputs, "messages"), tools)


def _emitted_ids(inputs: Inputs) -> tuple[int, ...]:
    return tuple(inputs["emitted_ids"].tolist()) if "emitted_ids" in inputs else ()


def _sampling(inputs: Inputs) -> SamplingParams:
    values = {
        field: inputs[PREFIX + field].item()
        for field in SAMPLING_FIELDS
        if PREFIX + field in inputs
    }
    if "sampling_param_stop" in inputs:
        stop = inputs["sampling_param_stop"].tolist()
        values["stop"] = tuple(_decode("sampling_param_stop", text) for text in stop)
    return SamplingParams(**values)


def _echo(inputs: Inputs) -> str:
    """The prompt, for a client that asks for it, sent it as text, and has nothing yet."""
    name = "sampling_param_exclude_input_from_output"
    if _emitted_ids(inputs):
        return ""
    if name in inputs and not inputs[name].item() and "text_input" in inputs:
        return _text(inputs, "text_input")
    return ""


def _text(inputs: Inputs, name: str) -> str:
    return _decode(name, inputs[name].item())


def _decode(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (byte {error.start}: {error.reason})") from None


def _objects(inputs: Inputs, name: str) -> list[dict[str, object]]:
    """The JSON list of objects in input `name`, which may not be empty."""
    try:
        value = json.loads(_text(inputs, name))
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON (column {error.pos + 1}: {error.msg})") from None
    except ValueError:
        raise InputError(f"{name} has a number of thousands of digits") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deeply") from None
    if not isinstance(value, list) or not value or not all(isinstance(i, dict) for i in value):
        raise InputError(f"{name} must be a JSON list of at least one object")
    return value
