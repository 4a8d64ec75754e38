"""A body in OpenAI's form, read: what to ask variants for, and how to answer."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trt_mtp.controller.gateway.call import SEED_BYTES
from trt_mtp.controller.gateway.http.generate_json import generate_request, json_object
from trt_mtp.controller.gateway.openai.answer_reader import OUTPUTS
from trt_mtp.controller.gateway.openai.call_json import END
from trt_mtp.controller.gateway.openai.deltas import ToolSchemas
from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.guided import (
    forced_call,
    format_of,
    guided_chat,
    guided_text,
)
from trt_mtp.controller.gateway.openai.logprobs import num_logprobs
from trt_mtp.controller.gateway.openai.messages import (
    check_messages,
    check_tools,
    json_text,
    schemas_of,
)
from trt_mtp.controller.gateway.openai.model_names import ModelNames
from trt_mtp.controller.gateway.openai.refused import check_completion, check_refused
from trt_mtp.controller.gateway.openai.schema import (
    MAX_CHOICES,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    read_as,
)
from trt_mtp.controller.gateway.openai.vendor import given_interval, request_parameters
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.request import UNBOUNDED_TOKENS, Hints, RequestFeatures
from trt_mtp.serve.contract import (
    GUIDED,
    IGNORE_EOS,
    LOGPROBS,
    MIN_TOKENS,
    NUM_LOGPROBS,
    REST_OF_CONTEXT,
    THINKING,
)
from trt_mtp.serve.kserve import InferRequest, made_request

PREFIX = "sampling_param_"
DEFAULT_TEMPERATURE = 1.0  # OpenAI's
RANDOM_SEED = -1  # as vLLM, llama.cpp and their front ends have it
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's max_tokens of a completion
MAX_BYTES = 64 * 1024 * 1024  # of all choices of a request


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: what a variant is asked for, and what a policy may know of it."""

    request: InferRequest
    known: RequestFeatures
    seed: bytes = b""  # UINT64; empty for a random one

    def features(self, _: InferRequest, hints: Hints) -> RequestFeatures:
        """What is known, with the hints that were checked."""
        return replace(
            self.known,
            hint_task=hints.task,
            hint_draft_length=hints.draft_length,
            session_id=hints.session_id,
            tenant=hints.tenant,
            latency_class=hints.latency_class,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of an OpenAI client."""

    id: str
    is_chat: bool
    model: str  # as the client calls it
    fingerprint: str | None
    created: int  # s since 1970
    num_prompts: int  # whose choices are one after the other, as many for each
    streams: bool
    wants_usage: bool  # at the end of a stream
    wants_running_usage: bool  # in each of its chunks
    wants_decision: bool
    wants_logprobs: bool
    choices: tuple[Choice, ...]
    schemas: ToolSchemas | None = None  # of the tools that may be called
    enable_thinking: bool | None = None


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Reads bodies for the public model `model`."""

    model: str
    names: ModelNames

    def chat(self, headers: Mapping[str, str], body: bytes) -> Asked:
        """A chat request; raises InputError, which names the parameter where there is one."""
        values = json_object(body)
        check_refused(values)
        request = read_as(ChatRequest, values)
        check_messages(request.messages)
        check_tools(request.tools or ())
        guided = guided_chat(request)
        tools = request.tools if request.tool_choice != "none" else None
        inputs = _chat_inputs(request, tools, is_guided=guided is not None)
        if guided:
            name = "tool_choice" if forced_call(request) else "response_format"
            inputs[GUIDED] = guided_text(guided, name)
        limit = request.max_completion_tokens or request.max_tokens
        known = {
            "messages": [_for_policy(message) for message in request.messages],
            "prediction": request.prediction is not None,
        }
        features = replace(
            self._features(request, known, limit),
            num_chars=len(inputs["messages"]),
            num_tool_chars=len(inputs.get("tools", "")),
            thinking=request.thinking,
            has_tools=bool(tools) or any(m["role"] == "tool" for m in request.messages),
            has_response_format=format_of(request) is not None,
            is_guided=GUIDED in inputs,
        )
        common = self._common(request, headers, limit or REST_OF_CONTEXT)
        _check_number(request, 1, len(body))
        return replace(
            self._asked(request, [(inputs, features)], common),
            schemas=schemas_of(tools) if tools else None,
            enable_thinking=request.thinking,
        )

    def completion(self, headers: Mapping[str, str], body: bytes) -> Asked:
        """A completion request; raises as `chat` does."""
        values = json_object(body)
        check_refused(values)
        check_completion(values)
        request = read_as(CompletionRequest, values)
        if request.best_of not in (None, request.n or 1):
            raise ParameterError("best_of is not supported here: expected it as n", "best_of")
        limit = request.max_tokens or DEFAULT_COMPLETION_TOKENS
        given, prompts, form = _prompts(request), [], format_of(request)
        guided = {GUIDED: guided_text(form, "response_format")} if form else {}
        _check_number(request, len(given), len(body))
        for prompt in given:
            known: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else ""}
            if not isinstance(prompt, str):
                known["num_prompt_tokens"] = len(prompt)
            features = replace(
                self._features(request, known, limit),
                has_response_format=bool(guided),
                is_guided=bool(guided),
            )
            prompts.append((_prompt_inputs(request, prompt) | guided, features))
        return self._asked(request, prompts, self._common(request, headers, limit))

    def _features(
        self, request: CommonRequest, known: dict[str, Any], limit: int | None
    ) -> RequestFeatures:
        temperature = request.temperature
        features = features_from_json(
            {
                **known,
                "temperature": DEFAULT_TEMPERATURE if temperature is None else temperature,
                "max_tokens": limit or UNBOUNDED_TOKENS,
            }
        )
        return replace(features, min_tokens=0 if request.ignore_eos else request.min_tokens or 0)

    def _common(
        self, request: CommonRequest, headers: Mapping[str, str], limit: int
    ) -> dict[str, Any]:
        """The inputs and parameters of every choice, as Triton's generate requests have them."""
        pinned = self.names.pinned_length(request.model)
        temperature = request.temperature
        values: dict[str, Any] = {
            "streaming": bool(request.stream),
            f"{PREFIX}max_tokens": limit,
            f"{PREFIX}temperature": DEFAULT_TEMPERATURE if temperature is None else temperature,
            "parameters": request_parameters(request, headers, pinned),
            **given_interval(request, limit),
        }
        if request.ignore_eos:
            values[IGNORE_EOS] = True
        if request.min_tokens:
            values[MIN_TOKENS] = request.min_tokens
        for name in ("top_p", "frequency_penalty", "presence_penalty"):
            value = getattr(request, name)
            if value is not None:
                values[f"{PREFIX}{name}"] = value
        if request.top_k is not None:
            values[f"{PREFIX}top_k"] = max(request.top_k, 0)
        if (number := num_logprobs(request)) is not None:
            values[NUM_LOGPROBS] = number
        return values

    def _asked(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: list[tuple[dict[str, Any], RequestFeatures]],
        common: dict[str, Any],
    ) -> Asked:
        is_chat = isinstance(request, ChatRequest)
        options = request.stream_options
        return Asked(
            id=f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            is_chat=is_chat,
            model=request.model,
            fingerprint=self.names.fingerprint(),
            created=int(time.time()),
            num_prompts=len(prompts),
            streams=bool(request.stream),
            wants_usage=bool(options and options.include_usage),
            wants_running_usage=bool(
                options and options.include_usage and options.continuous_usage_stats
            ),
            wants_decision=request.trt_mtp is not None,
            wants_logprobs=NUM_LOGPROBS in common,
            choices=tuple(self._choices(request, prompts, common)),
        )

    def _choices(
        self,
        request: CommonRequest,
        prompts: list[tuple[dict[str, Any], RequestFeatures]],
        common: dict[str, Any],
    ) -> Iterator[Choice]:
        """Those of a prompt are one request, told apart by their seeds."""
        for inputs, features in prompts:
            choice = self._choice(common | inputs, features)
            for number in range(request.n or 1):
                if request.seed is None or request.seed == RANDOM_SEED:
                    yield choice
                else:
                    seed = (request.seed + number) % 2 ** (8 * SEED_BYTES)
                    yield replace(choice, seed=seed.to_bytes(SEED_BYTES, "little"))

    def _choice(self, values: dict[str, Any], features: RequestFeatures) -> Choice:
        message = generate_request(values, self.model)
        for name in (*OUTPUTS, LOGPROBS) if NUM_LOGPROBS in values else OUTPUTS:
            message.outputs.add(name=name)
        return Choice(made_request(message), features)


def _chat_inputs(
    request: ChatRequest, tools: list[dict[str, Any]] | None, *, is_guided: bool
) -> dict[str, Any]:
    inputs: dict[str, Any] = {"messages": json_text(request.messages, "messages")}
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if tools:
        inputs["tools"] = json_text(tools, "tools")
        if request.parallel_tool_calls is False and not is_guided:  # which says it
            stop = [*stop, END]  # of the first call
    if request.thinking is not None:
        inputs[THINKING] = request.thinking
    if stop:
        inputs[f"{PREFIX}stop"] = stop
    return inputs


def _check_number(request: CommonRequest, num_prompts: int, num_bytes: int) -> None:
    """Raise ParameterError for too many answers; each is a request with a prompt of its own."""
    number = request.n or 1
    if num_prompts * number > MAX_CHOICES:
        raise ParameterError(
            f"the request asks for {num_prompts * number} answers: at most {MAX_CHOICES} are given",
            "n",
        )
    if number * num_bytes > MAX_BYTES:
        raise ParameterError(
            f"n is {number}, and the request has {num_bytes} bytes: together at most "
            f"{MAX_BYTES} are taken",
            "n",
        )


def _for_policy(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "developer":  # OpenAI's newer name
        return {**message, "role": "system"}
    return message


def _prompts(request: CompletionRequest) -> list[str] | list[list[int]]:
    """Each prompt of a request, which may be one or several, texts or token ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ParameterError("prompt is empty", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _prompt_inputs(request: CompletionRequest, prompt: str | list[int]) -> dict[str, Any]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    inputs: dict[str, Any] = {f"{PREFIX}stop": stop} if stop else {}
    if not isinstance(prompt, str):
        if request.echo:
            raise ParameterError("echo goes with a prompt that is text", "echo")
        return inputs | {"input_ids": prompt}
    inputs["text_input"] = prompt
    if request.echo:
        inputs[f"{PREFIX}exclude_input_from_output"] = False
    return inputs
