"""What is known of a request before it runs. The work never grows with the prompt."""

import json
import math
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trt_mtp.controller import pasted_text
from trt_mtp.controller.app_offset import app_key
from trt_mtp.controller.chat_messages import content_text, is_format, joined
from trt_mtp.errors import InputError
from trt_mtp.files import nearest
from trt_mtp.serve.contract import (
    EMITTED,
    EXPLAIN,
    GUIDED,
    IGNORE_EOS,
    MIN_TOKENS,
    PARAMETERS,
    REST_OF_CONTEXT,
    THINKING,
)
from trt_mtp.serve.engine.base import SamplingParams
from trt_mtp.serve.kserve import InferRequest, parameter_value
from trt_mtp.serve.parameter_names import unknown_parameter

CHARS_PER_TOKEN = 4.0
WINDOW_CHARS = 2_000  # of the prompt's start, its end and the system prompt
WINDOW_BYTES = 4 * WINDOW_CHARS  # a character has at most four
MAX_JSON_BYTES = 32_768  # longer `messages` are read through two windows, not as JSON
MAX_NAME_CHARS = 256  # of session_id, tenant, latency_class, and an input
UNBOUNDED_TOKENS = 2**31 - 1  # of an answer that may fill the context
PUBLIC_VERSION = "1"  # of the public model, whichever its variants have

# github.com/triton-inference-server/server, docs/protocol: schedule policy and sequence extensions
TRITON_PARAMETERS = (
    "priority",
    "timeout",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "triton_enable_empty_final_response",
)
_DEFAULTS = SamplingParams()
_CHAT_START = "<|im_start|>"
_CHAT_END = "<|im_end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFeatures:
    """What a policy may look at."""

    head: str = ""  # first WINDOW_CHARS characters of the user's text
    tail: str = ""  # last WINDOW_CHARS characters of it
    num_chars: int = 0  # of the prompt with its template; estimated if it is long
    system: str = ""  # first WINDOW_CHARS characters of the system prompt
    has_tools: bool = False
    has_response_format: bool = False
    has_prediction: bool = False  # of a text that the answer is to repeat for the most part
    temperature: float
    max_tokens: int
    thinking: bool | None = False  # None: the chat template's default
    num_prompt_tokens: int | None = None  # None for text
    hint_task: str | None = None  # request parameter `task`
    hint_draft_length: int | None = None  # request parameter `draft_length`; None is auto
    session_id: str | None = None
    tenant: str | None = None
    app: str | None = None  # named by its system prompt, see app_key
    latency_class: str | None = None
    num_tool_chars: int = 0  # of the tools, which the template puts into the prompt
    min_tokens: int = 0  # before an end token may come; 0 where end tokens are ignored
    is_guided: bool = False  # its answer is held to a grammar
    num_emitted: int = 0  # tokens of its answer that it brings, to be continued
    asks_of_pasted_text: bool = False  # its last turn is a long text with a question

    @property
    def input_tokens(self) -> int:
        """All that a variant reads before it answers."""
        return self.prompt_tokens + self.num_emitted

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens, estimated where it is text."""
        known = self.num_prompt_tokens
        if known is not None:
            return known
        return int((self.num_chars + self.num_tool_chars) / CHARS_PER_TOKEN)


class Hints(NamedTuple):
    """The request parameters that are for the gateway."""

    task: str | None
    draft_length: int | None
    session_id: str | None
    tenant: str | None
    latency_class: str | None
    wants_reasons: bool


class _Prompt(NamedTuple):
    head: str = ""
    tail: str = ""
    num_chars: int = 0
    system: str = ""
    has_tools: bool = False
    has_response_format: bool = False
    thinking: bool | None = False
    asks_of_pasted_text: bool = False


def read_hints(
    request: InferRequest, tasks: Collection[str], draft_lengths: Collection[int]
) -> Hints:
    """The gateway's parameters of a request.

    Raises InputError for a parameter that nobody reads, a task that is not in `tasks`, or a
    draft length that is not in `draft_lengths`.
    """
    values = {key: parameter_value(value) for key, value in request.message.parameters.items()}
    known = PARAMETERS + TRITON_PARAMETERS
    for key in values:
        if key not in known:
            raise unknown_parameter(key, known)
    return Hints(
        task=_task(values.get("task"), tasks),
        draft_length=_draft_length(values.get("draft_length"), draft_lengths),
        session_id=_name(values, "session_id"),
        tenant=_name(values, "tenant"),
        latency_class=_name(values, "latency_class"),
        wants_reasons=_flag(values, EXPLAIN),
    )


def _task(value: object, tasks: Collection[str]) -> str | None:
    if value is None or value == "auto":
        return None
    if value not in tasks:
        shown = str(value)[:MAX_NAME_CHARS]
        raise InputError(
            f"request parameter task is {shown!r}, not a known task"
            f"{nearest(shown, tasks)} (known: {', '.join(tasks)})"
        )
    return str(value)


def _draft_length(value: object, draft_lengths: Collection[int]) -> int | None:
    if value is None or value == "auto":
        return None
    text = str(value)[:MAX_NAME_CHARS] if not isinstance(value, bool) else repr(value)
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) not in draft_lengths:
        hosted = ", ".join(str(length) for length in sorted(draft_lengths))
        raise InputError(
            f"request parameter draft_length is {text!r}: expected auto or a hosted "
            f"draft length ({hosted})"
        )
    return int(text)


def _name(values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool | float) or len(str(value)) > MAX_NAME_CHARS:
        raise InputError(
            f"request parameter {key} has to be a text of at most {MAX_NAME_CHARS} characters"
        )
    return str(value)


def _flag(values: Mapping[str, object], key: str) -> bool:
    value = values.get(key, False)
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    shown = str(value)[:MAX_NAME_CHARS]
    raise InputError(f"request parameter {key} is {shown!r}: expected true or false")


def read_features(request: InferRequest, hints: Hints) -> RequestFeatures:
    """The features of a request; what can't be read counts as absent, its variant will tell."""
    prompt = _read_prompt(request)
    temperature = _number(request, "sampling_param_temperature", "<f", _DEFAULTS.temperature)
    tools = _element(request, "tools")
    is_guided = input_tensor(request, GUIDED) is not None
    return RequestFeatures(
        head=prompt.head,
        tail=prompt.tail,
        num_chars=prompt.num_chars,
        system=prompt.system,
        has_tools=prompt.has_tools or bool(tools),
        has_response_format=prompt.has_response_format or is_guided,
        temperature=temperature if math.isfinite(temperature) else _DEFAULTS.temperature,
        max_tokens=_max_tokens(request),
        thinking=_thinking(request, prompt.thinking),
        num_prompt_tokens=num_ids(request, "input_ids"),
        hint_task=hints.task,
        hint_draft_length=hints.draft_length,
        session_id=hints.session_id,
        tenant=hints.tenant,
        app=app_key(prompt.system),
        latency_class=hints.latency_class,
        num_tool_chars=len(tools) if tools else 0,
        min_tokens=_min_tokens(request),
        is_guided=is_guided,
        num_emitted=num_ids(request, EMITTED) or 0,
        asks_of_pasted_text=prompt.asks_of_pasted_text,
    )


def _thinking(request: InferRequest, default: bool | None) -> bool | None:
    said = _number(request, THINKING, "<?", math.nan)
    return default if math.isnan(said) else bool(said)


def _max_tokens(request: InferRequest) -> int:
    value = _whole(request, "sampling_param_max_tokens", _DEFAULTS.max_tokens)
    return UNBOUNDED_TOKENS if value == REST_OF_CONTEXT else value


def _min_tokens(request: InferRequest) -> int:
    is_free = _number(request, IGNORE_EOS, "<?", False)
    return 0 if is_free else _whole(request, MIN_TOKENS, _DEFAULTS.min_tokens)


def is_streaming(request: InferRequest) -> bool:
    """The request's input `streaming`, false by default."""
    return bool(_number(request, "streaming", "<?", False))


def input_tensor(request: InferRequest, name: str) -> Any | None:
    """The input of this name, None where there is none."""
    names = request.names
    return request.message.inputs[names.index(name)] if name in names else None


def _number(request: InferRequest, name: str, form: str, default: float) -> float:
    """The first element of a numeric input, in its raw or its typed form."""
    data = request.tensor(name)
    if data is not None and len(data) >= struct.calcsize(form):
        return float(struct.unpack_from(form, data)[0])
    tensor = input_tensor(request, name)
    if tensor is not None:
        contents = tensor.contents
        for values in (contents.int_contents, contents.fp32_contents, contents.bool_contents):
            if values:
                return float(values[0])
    return default


def _whole(request: InferRequest, name: str, default: int) -> int:
    """An INT32 input's first element; what a client put there as NaN or infinity is none."""
    value = _number(request, name, "<i", default)
    return int(value) if math.isfinite(value) else default


def num_ids(request: InferRequest, name: str) -> int | None:
    """The elements of an INT32 input, in its raw or its typed form."""
    data, tensor = request.tensor(name), input_tensor(request, name)
    if data is not None:
        return len(data) // 4
    return len(tensor.contents.int_contents) if tensor is not None else None


def _element(request: InferRequest, name: str) -> memoryview | None:
    """The first element of a BYTES input, in its raw or its typed form."""
    data = request.tensor(name)
    if data is not None and len(data) >= 4:
        return data[4 : 4 + int.from_bytes(data[:4], "little")]
    tensor = input_tensor(request, name)
    if tensor is not None and tensor.contents.bytes_contents:
        return memoryview(tensor.contents.bytes_contents[0])
    return None


def _read_prompt(request: InferRequest) -> _Prompt:
    messages = _element(request, "messages")
    if messages:
        if len(messages) <= MAX_JSON_BYTES:
            return _chat_prompt(bytes(messages))
        return _long_chat_prompt(messages)
    text = _element(request, "text_input")
    return _text_prompt(text) if text else _Prompt()


def _windows(data: memoryview) -> tuple[str, str, int]:
    """The start and the end of a text, both all of it where it is short, and its length."""
    if len(data) <= 2 * WINDOW_BYTES:
        text = bytes(data).decode(errors="replace")
        return text, text, len(text)
    head = bytes(data[:WINDOW_BYTES]).decode(errors="ignore")
    tail = bytes(data[-WINDOW_BYTES:]).decode(errors="ignore")
    return head, tail, len(data) * len(head) // WINDOW_BYTES


def _text_prompt(data: memoryview) -> _Prompt:
    """A plain text, or one that went through a ChatML template (Qwen's) already."""
    head, tail, num_chars = _windows(data)
    tail, thinking = _without_generation_prompt(tail)
    if len(data) <= 2 * WINDOW_BYTES:
        head = tail
    system = ""
    if head.startswith(f"{_CHAT_START}system\n"):
        system, _, head = head.removeprefix(f"{_CHAT_START}system\n").partition(_CHAT_END)
        head = head.lstrip()
    head = head.removeprefix(f"{_CHAT_START}user\n")
    return _Prompt(
        head=head[:WINDOW_CHARS],
        tail=(head if len(data) <= 2 * WINDOW_BYTES else tail)[-WINDOW_CHARS:],
        num_chars=num_chars,
        system=system[:WINDOW_CHARS],
        has_tools="<tools>" in system,
        thinking=thinking,
        asks_of_pasted_text=pasted_text.asks_in_text(head, tail, num_chars),
    )


def _without_generation_prompt(tail: str) -> tuple[str, bool]:
    """`tail` without a template's opening of the answer, and whether that opens with thinking."""
    at = tail.rfind(f"{_CHAT_START}assistant")
    if at < 0 or len(tail) - at > 64:  # an earlier turn's
        return tail, False
    opening = tail[at:]
    is_thinking = "<think>" in opening and "</think>" not in opening
    return tail[:at].rstrip().removesuffix(_CHAT_END), is_thinking


def _chat_prompt(data: bytes) -> _Prompt:
    """Chat messages as a JSON list, or in an object with `tools` and more beside them."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # which a variant may read after all: it counts
        return _Prompt(num_chars=len(data))
    options: Mapping[str, object] = value if isinstance(value, dict) else {}
    listed = options.get("messages") if isinstance(value, dict) else value
    messages = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    system = next((m for m in messages if m.get("role") == "system"), {})
    turns = [m for m in messages if m.get("role") not in ("system", "assistant")]
    last = content_text(turns[-1]) if turns else ""
    return _Prompt(
        head=joined(turns)[:WINDOW_CHARS],
        tail=joined(turns)[-WINDOW_CHARS:],
        num_chars=len(data.decode(errors="ignore")),
        system=content_text(system)[:WINDOW_CHARS],
        has_tools=bool(options.get("tools")) or any(m.get("role") == "tool" for m in turns),
        has_response_format=is_format(options.get("response_format")),
        thinking=said if isinstance(said := options.get("enable_thinking"), bool) else None,
        asks_of_pasted_text=pasted_text.asks_of_pasted_text(last, last, len(last)),
    )


def _long_chat_prompt(data: memoryview) -> _Prompt:
    """Chat messages too long to parse: their system prompt and the two ends, roughly."""
    head, tail, num_chars = _windows(data)
    system = ""
    first = re.search(r'\{\s*"(role|content)"', head)
    if first:
        try:
            message, end = json.JSONDecoder().raw_decode(head, first.start())
        except (ValueError, RecursionError):  # longer than the window
            message, end = {}, 0
        if message.get("role") == "system":
            system, head = content_text(message), head[end:]
    outside = head + tail  # keys inside a content have their quotes escaped
    said = re.search(r'(?<!\\)"enable_thinking"\s*:\s*(true|false)', outside)
    return _Prompt(
        head=pasted_text.unescaped(head)[:WINDOW_CHARS],
        tail=pasted_text.unescaped(tail)[-WINDOW_CHARS:],
        num_chars=num_chars,
        system=system[:WINDOW_CHARS],
        has_tools=re.search(r'(?<!\\)"tools"\s*:\s*\[\s*\{', outside) is not None,
        has_response_format=re.search(r'(?<!\\)"response_format"\s*:\s*\{', outside) is not None,
        thinking=None if said is None else said[1] == "true",
        asks_of_pasted_text=pasted_text.asks_in_messages(head, tail, num_chars),
    )
