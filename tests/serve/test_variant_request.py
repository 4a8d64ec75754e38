"""Triton requests as engine requests: what is accepted, and the sentence for what is not."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.contract import NEUTRAL
from trt_mtp.serve.engine.base import (
    Chunk,
    EngineStatistics,
    Generation,
    Guided,
    Request,
    SamplingParams,
)
from trt_mtp.serve.reasoning import Reasoning
from trt_mtp.serve.streaming_interval import Interval
from trt_mtp.serve.variant_request import VariantRequest, read_request


class BytesEngineDouble:
    """An engine double whose tokens are bytes; it is asked to encode only."""

    max_seq_len = 1_000

    def encode(self, text: str) -> tuple[int, ...]:
        """The UTF-8 bytes."""
        return tuple(text.encode())

    def encode_chat(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> tuple[int, ...]:
        """The bytes of the contents, of the tools' JSON, and of what is said of thinking."""
        text = "|".join(str(message.get("content")) for message in messages)
        text += "" if enable_thinking is None else f"<{enable_thinking}>"
        return self.encode(text + (json.dumps(tools) if tools else ""))

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> Generation:
        """Not asked for."""
        raise NotImplementedError

    failure = ""

    def statistics(self) -> EngineStatistics:
        """Not asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""


def request_of(
    found: VariantRequest, ids: tuple[int, ...], emitted_ids: tuple[int, ...] = ()
) -> Request:
    """The request that `found` should hold, with the seed that was drawn for it."""
    return Request(ids, SamplingParams(seed=found.request.sampling.seed), emitted_ids)


def read(parameters: str = "", **inputs: Any) -> VariantRequest:
    """Read a request with `inputs`, texts and lists made tensors as Triton hands them over."""
    return read_request(tensors_of(inputs), parameters, BytesEngineDouble())


def tensors_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs as Triton hands them over."""
    tensors = {}
    for name, value in inputs.items():
        values = value if isinstance(value, list) else [value]
        values = [text.encode() if isinstance(text, str) else text for text in values]
        is_text = any(isinstance(text, bytes) for text in values)
        tensors[name] = np.array(values, np.object_ if is_text else None)
    return tensors


def test_a_request_with_a_text_only_has_the_defaults() -> None:
    """Nothing but the prompt has to be given."""
    found = read(text_input="ab")
    request = request_of(found, (97, 98))
    assert found == VariantRequest(request, False, Interval(), "", frozenset())


@pytest.mark.parametrize("name", ["messages", "text_input"])
def test_what_is_known_of_the_reasoning_goes_with_a_chat(name: str) -> None:
    """An engine knows where the answer's reasoning ends; a prompt that is no chat has none."""
    reasoning = Reasoning(lambda text: (len(text),), ChatFormat("json", True, (True, True, False)))
    prompt = '[{"role": "user", "content": "a"}]'
    engine = BytesEngineDouble()
    found = read_request(tensors_of({name: prompt}), "", engine, reasoning=reasoning)
    assert found.request.reasoning is not None
    assert found.request.reasoning.counter().is_inside == (name == "messages")


def test_a_seed_is_drawn_where_none_is_given() -> None:
    """Two equal requests have different seeds of 64 bits; a given one stays, 0 as well."""
    seeds = {read(text_input="ab").request.sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) >= 2**56
    assert read(text_input="ab", sampling_param_seed=np.uint64(0)).request.sampling.seed == 0


@pytest.mark.parametrize("name", NEUTRAL)
def test_inputs_of_the_llmapi_model(name: str) -> None:
    """What changes nothing is taken; what would change the answer is refused by name."""
    neutral: Any = NEUTRAL[name]
    read(text_input="ab", **{name: neutral})
    other: Any = b"x" if isinstance(neutral, bytes) else True if neutral is False else neutral + 2
    with pytest.raises(InputError, match=f"^{name} is not supported here; expected "):
        read(text_input="ab", **{name: other})


def test_a_grammar_arrives() -> None:
    """With the tools that it needs; an answer to messages may begin with reasoning."""
    found = read(text_input="ab", guided_decoding='{"regex": "a+"}')
    assert found.request.guided == Guided("regex", "a+")
    assert read(text_input="ab").request.guided is None
    tools = [{"function": {"name": "f"}}]
    found = read(
        messages='[{"content": "x"}]',
        tools=json.dumps(tools),
        guided_decoding='{"tool_choice": {"name": "f"}}',
    )
    assert found.request.guided == Guided("tool_choice", "f", tuple(tools), True, True)
    with pytest.raises(InputError, match="guided_decoding is not JSON"):
        read(text_input="ab", guided_decoding="{")


def test_every_sampling_input_arrives() -> None:
    """Each sampling_param_ input becomes the field of its name."""
    found = read(
        input_ids=[5, 6],
        streaming=True,
        sampling_param_max_tokens=9,
        sampling_param_min_tokens=4,
        sampling_param_ignore_eos=True,
        sampling_param_temperature=0.5,
        sampling_param_top_k=3,
        sampling_param_top_p=0.25,
        sampling_param_seed=np.uint64(2**64 - 1),
        sampling_param_stop=["a", "é"],
    )
    sampling = SamplingParams(
        max_tokens=9, min_tokens=4, ignore_eos=True, temperature=0.5, top_k=3, top_p=0.25,
        seed=2**64 - 1, stop=("a", "é"),
    )  # fmt: skip
    assert found.request == Request((5, 6), sampling)
    assert found.is_streaming


@pytest.mark.parametrize(
    ("num_prompt", "asked", "taken"),
    [
        (990, {}, 10),  # of the default, 128
        (990, {"max_tokens": 65_535}, 10),
        (990, {"max_tokens": 10}, 10),
        (990, {"max_tokens": 9}, 9),
        (990, {"max_tokens": -1}, 10),
        (990, {"max_tokens": 65_535, "min_tokens": 10}, 10),
        (990, {"max_tokens": 65_535, "min_tokens": 11}, 65_535),
        (1_000, {"max_tokens": 65_535}, 65_535),
        (990, {"max_tokens": 0}, 0),
    ],
)
def test_a_bound_beyond_the_context(num_prompt: int, asked: dict[str, int], taken: int) -> None:
    """The context's end bounds the answer as well; what can't be done is left to be refused."""
    inputs: dict[str, Any] = {f"sampling_param_{name}": value for name, value in asked.items()}
    found = read(input_ids=[5] * num_prompt, **inputs)
    assert found.request.sampling.max_tokens == taken


def test_an_interval_goes_by_the_bound_asked_for() -> None:
    """Not by what the context leaves of it, which clients don't know."""
    found = read(
        input_ids=[5] * 990,
        streaming=True,
        streaming_interval=50,
        sampling_param_max_tokens=65_535,
    )
    assert found.interval == Interval(50, 1.0)


def test_a_nucleus_of_nothing_is_the_likeliest_token() -> None:
    """top_p 0 is valid in OpenAI's API, and engines differ in what they make of it."""
    sampling = read(text_input="ab", sampling_param_top_p=0.0, sampling_param_top_k=9)
    assert (sampling.request.sampling.top_p, sampling.request.sampling.top_k) == (1.0, 1)


@pytest.mark.parametrize(
    ("given", "interval"),
    [
        ({"streaming_interval": 8}, Interval(8, 1.0)),
        ({"streaming_interval_ms": 200}, Interval(9, 0.2)),
        ({"streaming_interval": 3, "streaming_interval_ms": 50}, Interval(3, 0.05)),
    ],
)
def test_an_interval_is_tokens_or_time(given: dict[str, Any], interval: Interval) -> None:
    """Whichever is reached first; what isn't given is no reason to send."""
    found = read(text_input="ab", streaming=True, sampling_param_max_tokens=9, **given)
    assert found.interval == interval


@pytest.mark.parametrize(
    ("given", "interval"),
    [
        ({"streaming": True}, Interval(9, 0.2)),  # an answer may be shorter than the default
        ({"streaming": True, "streaming_interval": 3}, Interval(3, 1.0)),
        ({"streaming": True, "streaming_interval_ms": 50}, Interval(9, 0.05)),
        ({}, Interval()),
    ],
)
def test_a_variants_interval_is_for_requests_without_one(
    given: dict[str, Any], interval: Interval
) -> None:
    """A request that gives either has only that, and one without a stream has none."""
    default = {"streaming_interval": 64, "streaming_interval_ms": 200}
    tensors = tensors_of({"text_input": "ab", "sampling_param_max_tokens": 9, **given})
    found = read_request(tensors, "", BytesEngineDouble(), default)
    assert found.interval == interval


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"streaming_interval": 0}, "streaming_interval is 0: expected 1 to sampling_param_max_"),
        ({"streaming_interval": 10}, "expected 1 to sampling_param_max_tokens, 9"),
        ({"streaming_interval_ms": -1}, "streaming_interval_ms is -1: expected 1 to 1000"),
        ({"streaming_interval_ms": 1001}, "streaming_interval_ms is 1001: expected 1 to 1000"),
        ({"streaming_interval": 2, "streaming": False}, "streaming_interval goes with streaming"),
    ],
)
def test_intervals_that_are_none_are_refused(given: dict[str, Any], says: str) -> None:
    """Zero, negative, beyond the answer, or for an answer in one piece."""
    with pytest.raises(InputError, match=says):
        read(**{"text_input": "ab", "streaming": True, "sampling_param_max_tokens": 9, **given})


def test_messages_go_through_the_chat_template() -> None:
    """messages and tools are JSON lists for the chat template."""
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert read(messages=messages).request.prompt_ids == tuple(b"a|b")
    assert read(messages=messages, tools="[{}]").request.prompt_ids == tuple(b"a|b[{}]")
    for thinking in (True, False):
        found = read(messages=messages, enable_thinking=thinking)
        assert found.request.prompt_ids == tuple(f"a|b<{thinking}>".encode())
    with pytest.raises(InputError, match="enable_thinking goes with messages; this request has te"):
        read(text_input="ab", enable_thinking=True)


def test_the_prompt_is_echoed_on_demand_only() -> None:
    """The answer begins with the prompt where a client says so, and had sent text."""
    assert read(text_input="ab", sampling_param_exclude_input_from_output=False).echo == "ab"
    assert read(text_input="ab", sampling_param_exclude_input_from_output=True).echo == ""
    assert read(input_ids=[1], sampling_param_exclude_input_from_output=False).echo == ""


def test_an_answer_that_goes_on_has_no_echo() -> None:
    """Tokens that the client has arrive beside the prompt, which isn't echoed again."""
    begun: dict[str, Any] = {"text_input": "ab", "sampling_param_exclude_input_from_output": False}
    found = read(**begun, emitted_ids=[7, 8])
    assert found.request == request_of(found, (97, 98), emitted_ids=(7, 8))
    assert found.echo == ""
    seed = np.uint64(1)
    assert read(**begun, sampling_param_seed=seed, emitted_ids=[]) == read(
        **begun, sampling_param_seed=seed
    )


def test_flags_leave_outputs_out() -> None:
    """A return flag that is false takes its outputs out of the answer; a true one does nothing."""
    assert read(text_input="a", return_finish_reason=False).omitted == {"finish_reason"}
    assert read(text_input="a", return_finish_reason=True).omitted == frozenset()
    assert "num_steps" in read(text_input="a", sampling_param_return_perf_metrics=False).omitted


def test_the_gateways_parameters_pass() -> None:
    """Request parameters that are meant for the gateway are no error at a variant."""
    read('{"task": "coding", "draft_length": "auto", "session_id": "s"}', text_input="a")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "exactly one of the inputs text_input, messages, input_ids; this request has none"),
        ({"text_input": "a", "input_ids": [1]}, "this request has text_input and input_ids"),
        ({"text_input": b"a\xff"}, r"text_input is not UTF-8 \(byte 1: invalid start byte\)"),
        ({"text_input": "a", "sampling_param_stop": [b"\xff"]}, "sampling_param_stop is not UTF-8"),
        ({"text_input": "a", "tools": "[{}]"}, "tools goes with messages"),
        ({"messages": "[{"}, r"messages is not JSON \(column 3: "),
        ({"messages": "[" * 100_000}, "messages is nested too deeply"),
        ({"messages": "[" + "{}," * 100_000 + "{}]"}, "messages has too many values"),
        (
            {"messages": '[{"a": ' + "9" * 5000 + "}]"},
            "messages has a number of thousands of digits",
        ),
        ({"messages": "[]"}, "messages must be a JSON list of at least one object"),
        ({"messages": '["hi"]'}, "messages must be a JSON list"),
        ({"messages": '[{"role": "user"}]', "tools": "{}"}, "tools must be a JSON list"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(inputs: dict[str, Any], sentence: str) -> None:
    """Wrong inputs are refused with a sentence that names them."""
    with pytest.raises(InputError, match=sentence):
        read(**inputs)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_tokens", "sampling_param_max_tokens"),
        ("draft_lenght", "draft_length"),
        ("text_inputs", "text_input"),
        ("top_p", "sampling_param_top_p"),
        ("stop_words", "sampling_param_stop"),  # of NVIDIA's ensemble, as is stream
        ("stream", "streaming"),
        ("request_output_len", "sampling_param_max_tokens"),  # of NVIDIA's tensorrt_llm model
        ("random_seed", "sampling_param_seed"),
        ("runtime_top_k", "sampling_param_top_k"),
    ],
)
def test_an_unknown_parameter_names_the_nearest(name: str, meant: str) -> None:
    """A parameter that nothing reads is refused, and the nearest known name is given."""
    sentence = f"unknown request parameter '{name}'; did you mean {meant}"
    with pytest.raises(InputError, match=sentence):
        read(json.dumps({name: 1}), text_input="a")


@pytest.mark.parametrize("name", ["end_id", "input_lengths", "length_penalty", "bad_words"])
def test_what_has_no_like_is_not_guessed_at(name: str) -> None:
    """end_id looks like session_id, and input_lengths like draft_length: they aren't."""
    sentence = f"^unknown request parameter '{name}'; nothing here is like it, leave it out$"
    with pytest.raises(InputError, match=sentence):
        read(json.dumps({name: 1}), text_input="a")


@given(st.binary())
def test_any_bytes_are_a_prompt_or_a_sentence(text: bytes) -> None:
    """No text, well-formed or not, ends in anything but a request or an InputError."""
    for name in ("text_input", "messages"):
        try:
            found = read("", **{name: text})
        except InputError:
            continue
        assert found.request.prompt_ids == tuple(text) or name == "messages"
