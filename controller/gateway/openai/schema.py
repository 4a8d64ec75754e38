"""The bodies of requests in OpenAI's form: kinds and ranges of what is read of them.

https://github.com/openai/openai-openapi (openapi.yaml, CreateChatCompletionRequest and
CreateCompletionRequest). Keys that are not here are left to refused.py, or change nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trt_mtp.controller.gateway.http.generate_json import whole_number
from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.serve.contract import MAX_LOGPROBS
from trt_mtp.serve.streaming_interval import MAX_HOLD_MS

MAX_CHOICES = 128  # of one request, as OpenAI's `n`
INT64 = 2**63

Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
T = TypeVar("T")
# checked to the first value that is wrong: a million errors stop the gateway for seconds
Values = Annotated[list[T], Field(fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
MAX_PROMPTS = 1_024  # that are read; fewer are answered
Prompts = Annotated[list[Values[TokenId]], Field(fail_fast=True, max_length=MAX_PROMPTS)]

# pydantic has a sentence for each form, the first of which would be about texts only
WRONG_PROMPT = (
    "prompt has to be a text, token ids (whole numbers from 0 to 2147483647), or a list of texts "
    "or of lists of token ids"
)


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        """16 for 16.0; what is inside of messages and tools stays as it is."""
        if not isinstance(values, Mapping):
            return values
        return {name: whole_number(value) for name, value in values.items()}


class _Closed(_Model):
    """One whose keys are all known. Of unknown ones the first is told: each would be an error."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    return {key: None}
        return values


class StreamOptions(_Model):
    """What a stream has beside its pieces."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class VendorOptions(_Closed):
    """`trt_mtp`: the gateway's request parameters, and the streaming interval of variants.

    Given at all, the answer has it, too.
    """

    task: Name | None = None
    draft_length: int | Name | None = None
    session_id: Name | None = None
    tenant: Name | None = None
    latency_class: Name | None = None
    explain: bool | None = None
    streaming_interval: int | None = Field(None, ge=1, lt=2**31)  # tokens of a chunk
    streaming_interval_ms: int | None = Field(None, ge=1, le=MAX_HOLD_MS)


class Prediction(_Model):
    """A text that the answer is expected to repeat for the most part; it changes only the way."""

    type: Literal["content"]
    content: str | Values[dict[str, Any]]


class CommonRequest(_Model):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-INT64, lt=2 * INT64)
    stop: str | Values[str] | None = None
    ignore_eos: bool | None = None  # vLLM's, as is min_tokens
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    service_tier: str | None = None
    priority: int | None = Field(None, ge=-INT64, lt=INT64)
    prompt_cache_key: str | None = None
    trt_mtp: VendorOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None  # vLLM's, and by its older names
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Values[str] | None = None


class TemplateOptions(_Closed):
    """`chat_template_kwargs`, as vLLM has it: the template's variables."""

    enable_thinking: bool | None = None


class ChatRequest(CommonRequest):
    """A body of POST /v1/chat/completions."""

    messages: Values[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    tools: Values[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    enable_thinking: bool | None = None  # Qwen's own API has it here
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def thinking(self) -> bool | None:
        """Whether the answer is to begin with thinking; None leaves it to the template."""
        options = self.chat_template_kwargs
        given = None if options is None else options.enable_thinking
        if given is None:
            given = self.enable_thinking
        if given is None and self.reasoning_effort is not None:
            return self.reasoning_effort != "none"  # Qwen's templates know no degrees
        return given


class CompletionRequest(CommonRequest):
    """A body of POST /v1/completions."""

    prompt: str | Values[str] | Values[TokenId] | Prompts
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


R = TypeVar("R", ChatRequest, CompletionRequest)


def read_as(kind: type[R], values: Mapping[str, Any]) -> R:
    """`values` as a request; raises ParameterError, which names the first that is wrong."""
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        raise _parameter_error(error) from None
    if request.stream_options is not None and not request.stream:
        raise ParameterError("stream_options goes with stream: true", "stream_options")
    return request


def _parameter_error(error: ValidationError) -> ParameterError:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = found["loc"]
    name = str(place[0]) if place else "body"
    if name in ("trt_mtp", "stream_options", "chat_template_kwargs") and len(place) > 1:
        name = f"{name}.{str(place[1])[:MAX_NAME_CHARS]}"
    elif name in ("messages", "tools") and len(place) > 1:
        name = f"{name}[{place[1]}]"
    if found["type"] == "missing":
        return ParameterError(f"{name} is missing", name, "missing_required_parameter")
    said = WRONG_PROMPT if name == "prompt" else f"{name}: {found['msg']}"
    return ParameterError(said, name, "invalid_value")
