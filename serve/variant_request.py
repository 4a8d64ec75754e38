"""One Triton request, checked and turned into an engine request."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import ChatOptions
from trt_mtp.serve.contract import (
    CANCEL,
    GUIDED,
    MAX_LOGPROBS,
    MAX_STOP_TEXTS,
    NEUTRAL,
    NUM_LOGPROBS,
    OUTPUT_FLAGS,
    PARAMETERS,
    PROMPT_INPUTS,
    REST_OF_CONTEXT,
    RETURN_READ,
    THINKING,
)
from trt_mtp.serve.engine.base import Engine, Guided, Request, SamplingParams
from trt_mtp.serve.guided_decoding import read_guided
from trt_mtp.serve.json_weight import MAX_DIGITS, is_heavy
from trt_mtp.serve.parameter_names import PREFIX, unknown_parameter
from trt_mtp.serve.reasoning import Reasoning
from trt_mtp.serve.streaming_interval import (
    INTERVALS,
    NO_INTERVAL,
    GivenInterval,
    Interval,
    asked_interval,
    default_interval,
)

Inputs = Mapping[str, NDArray[Any]]

SAMPLING_FIELDS = (
    "max_tokens", "min_tokens", "ignore_eos", "temperature", "top_k", "top_p", "seed",
    "frequency_penalty", "presence_penalty",
)  # fmt: skip
FOR_MESSAGES = ("tools", THINKING)
SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """What to run and how to answer."""

    request: Request
    is_streaming: bool
    interval: Interval
    echo: str  # the prompt, where it is to be part of the answer
    omitted: frozenset[str]  # outputs that flags leave out
    tells_read: bool = False  # that its grammar was accepted


def read_request(
    inputs: Inputs,
    parameters: str,
    engine: Engine,
    interval: GivenInterval = NO_INTERVAL,
    reasoning: Reasoning | None = None,
) -> VariantRequest:
    """The request whose tensors are `inputs` and whose parameters are the JSON object `parameters`.

    `interval` is the variant's, for streamed answers whose request has none; `reasoning` is that of
    its checkpoint.

    Raises InputError if it can't be run; the engine checks ranges and lengths on submission.
    """
    _check_parameters(json.loads(parameters) if parameters else {})
    _check_neutral(inputs)
    is_streaming = "streaming" in inputs and bool(inputs["streaming"].item())
    flags = {name: bool(inputs[name].item()) for name in OUTPUT_FLAGS if name in inputs}
    prompt_ids = _prompt_ids(inputs, engine)
    sampling = _sampling(inputs, engine.max_seq_len - len(prompt_ids))
    longest = max(sampling.max_tokens, _max_tokens(inputs))
    chat = ChatOptions(_thinking(inputs), "tools" in inputs) if "messages" in inputs else None
    return VariantRequest(
        request=Request(
            prompt_ids,
            sampling,
            _emitted_ids(inputs),
            "return_margin" in inputs and bool(inputs["return_margin"].item()),
            _guided(inputs),
            _num_logprobs(inputs),
            None if reasoning is None else reasoning.start(chat),
        ),
        is_streaming=is_streaming,
        interval=_interval(inputs, longest, is_streaming, interval),
        echo=_echo(inputs),
        omitted=frozenset[str]().union(
            *(OUTPUT_FLAGS[name] for name, is_wanted in flags.items() if not is_wanted)
        ),
        tells_read=RETURN_READ in inputs and bool(inputs[RETURN_READ].item()),
    )


def read_cancel(inputs: Inputs) -> str | None:
    """The id of the request that this one cancels; None for one that wants an answer.

    Raises InputError for an id that is empty, and for one that comes with other inputs.
    """
    if CANCEL not in inputs:
        return None
    others = sorted(set(inputs) - {CANCEL})
    if others:
        raise InputError(f"{CANCEL} goes alone; this request has {', '.join(others)} as well")
    request_id = _text(inputs, CANCEL)
    if not request_id:
        raise InputError(f"{CANCEL} is empty; it names the request to cancel by its id")
    return request_id


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Triton's HTTP `generate` makes a parameter of every key that is not an input."""
    for name in parameters:
        if name not in PARAMETERS:
            raise unknown_parameter(name, PARAMETERS)


def _check_neutral(inputs: Inputs) -> None:
    """Refuse inputs of NVIDIA's llmapi model that would change the answer, at other values."""
    for name, neutral in NEUTRAL.items():
        if name in inputs and any(value != neutral for value in inputs[name].ravel().tolist()):
            shown = neutral.decode() if isinstance(neutral, bytes) else str(neutral).lower()
            expected = f"{name} {shown}" if shown else f"an empty {name}"
            hint = f"; to cancel a request, send {CANCEL}" if name == "stop" else ""
            raise InputError(f"{name} is not supported here; expected {expected} or none{hint}")


def _prompt_ids(inputs: Inputs, engine: Engine) -> tuple[int, ...]:
    given = [name for name in PROMPT_INPUTS if name in inputs]
    if len(given) != 1:
        raise InputError(
            f"expected exactly one of the inputs {', '.join(PROMPT_INPUTS)}; "
            f"this request has {' and '.join(given) or 'none'}"
        )
    for name in FOR_MESSAGES if given != ["messages"] else ():
        if name in inputs:
            raise InputError(f"{name} goes with messages; this request has {given[0]}")
    if given == ["input_ids"]:
        return tuple(inputs["input_ids"].tolist())
    if given == ["text_input"]:
        return engine.encode(_text(inputs, "text_input"))
    tools = _objects(inputs, "tools") if "tools" in inputs else None
    return engine.encode_chat(_objects(inputs, "messages"), tools, _thinking(inputs))


def _thinking(inputs: Inputs) -> bool | None:
    return bool(inputs[THINKING].item()) if THINKING in inputs else None


def _guided(inputs: Inputs) -> Guided | None:
    if GUIDED not in inputs:
        return None
    tools = _objects(inputs, "tools") if "tools" in inputs else []
    return read_guided(_text(inputs, GUIDED), tools, may_think="messages" in inputs)


def _num_logprobs(inputs: Inputs) -> int | None:
    if NUM_LOGPROBS not in inputs:
        return None
    value = int(inputs[NUM_LOGPROBS].item())
    if not 0 <= value <= MAX_LOGPROBS:
        raise InputError(f"{NUM_LOGPROBS} is {value}: expected 0 to {MAX_LOGPROBS}")
    return value


def _emitted_ids(inputs: Inputs) -> tuple[int, ...]:
    return tuple(inputs["emitted_ids"].tolist()) if "emitted_ids" in inputs else ()


def _sampling(inputs: Inputs, room: int) -> SamplingParams:
    """`room` is how many tokens the context has for the answer, which may be none."""
    values = {
        field: inputs[PREFIX + field].item()
        for field in SAMPLING_FIELDS
        if PREFIX + field in inputs
    }
    values["max_tokens"] = _max_tokens(inputs)
    if values["max_tokens"] == REST_OF_CONTEXT:
        values["max_tokens"] = max(room, 1)
    elif max(values.get("min_tokens", 0), 1) <= room:
        values["max_tokens"] = min(values["max_tokens"], room)  # clients have one for all prompts
    if values.get("top_p") == 0:  # as OpenAI's API has it: of all tokens only the likeliest
        values |= {"top_p": 1.0, "top_k": 1}
    if "sampling_param_stop" in inputs:
        texts = inputs["sampling_param_stop"]
        if texts.size > MAX_STOP_TEXTS:
            raise InputError(
                f"the request has {texts.size} stop texts; at most {MAX_STOP_TEXTS} are taken"
            )
        stop = texts.tolist()
        values["stop"] = tuple(_decode("sampling_param_stop", text) for text in stop)
    # without this, equal prompts would have equal samples
    return SamplingParams(**{"seed": secrets.randbits(SEED_BITS), **values})


def _max_tokens(inputs: Inputs) -> int:
    """As the request has it, which may be REST_OF_CONTEXT, or more than that."""
    name = f"{PREFIX}max_tokens"
    return int(inputs[name].item()) if name in inputs else SamplingParams().max_tokens


def _interval(
    inputs: Inputs, max_tokens: int, is_streaming: bool, default: GivenInterval
) -> Interval:
    given = {name: int(inputs[name].item()) for name in INTERVALS if name in inputs}
    if not is_streaming:
        for name in given:
            raise InputError(f"{name} goes with streaming, which this request doesn't ask for")
        return Interval()
    return asked_interval(given, max_tokens) if given else default_interval(default, max_tokens)


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
    text = _text(inputs, name)
    if is_heavy(text.encode()):
        raise InputError(
            f"{name} has too many values, where a list of messages may have thousands, or a number "
            f"of more than {MAX_DIGITS} digits"
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON (column {error.pos + 1}: {error.msg})") from None
    except ValueError:
        raise InputError(f"{name} has a number of thousands of digits") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deeply") from None
    if not isinstance(value, list) or not value or not all(isinstance(i, dict) for i in value):
        raise InputError(f"{name} must be a JSON list of at least one object")
    return value
