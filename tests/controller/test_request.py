"""What is read of a request before it runs."""

import json
import math
import struct
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.request import (
    MAX_JSON_BYTES,
    WINDOW_BYTES,
    WINDOW_CHARS,
    RequestFeatures,
    read_features,
    read_hints,
)
from trt_mtp.controller.request_limits import check_request
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import read_request

Content = str | bytes | float | bool


def raw_content(value: Content) -> tuple[str, bytes]:
    """Data type and raw bytes of a tensor of one element."""
    if isinstance(value, bool):
        return "BOOL", bytes([value])
    if isinstance(value, int):
        return "INT32", struct.pack("<i", value)
    if isinstance(value, float):
        return "FP32", struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return "BYTES", len(data).to_bytes(4, "little") + data


def features_of(parameters: Any = None, **inputs: Any) -> RequestFeatures:
    """The features of a request with these inputs."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    for name, value in inputs.items():
        datatype, raw = raw_content(value)
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    for key, text in (parameters or {}).items():
        request.parameters[key].string_param = text
    read = read_request(request.SerializeToString())
    return read_features(read, read_hints(read, TASKS, (0, 1, 3)))


def chat(*turns: tuple[str, Any]) -> str:
    """Chat messages as JSON."""
    return json.dumps([{"role": role, "content": content} for role, content in turns])


def test_a_plain_text() -> None:
    """Text is taken as it is, with the sampling that goes with it."""
    features = features_of(
        text_input="Write a haiku.", sampling_param_temperature=0.5, sampling_param_max_tokens=40
    )
    assert features.head == features.tail == "Write a haiku."
    assert features.num_chars == 14
    assert (features.temperature, features.max_tokens) == (0.5, 40)
    assert features.num_prompt_tokens is None
    assert not features.has_tools


def test_a_templated_text_is_taken_apart() -> None:
    """What a ChatML template added is not what the user wrote."""
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    features = features_of(text_input=text)
    assert features.system == "Be brief."
    assert features.head == features.tail == "Why is the sky blue?"
    assert features.thinking
    assert not features_of(text_input=text + "\n</think>\n\n").thinking


def test_chat_messages() -> None:
    """The system prompt apart, what users and tools say joined, the model's own words left out."""
    messages = chat(
        ("system", "You are terse."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", [{"type": "text", "text": "And now?"}, {"type": "image"}]),
    )
    features = features_of(messages=messages)
    assert features.system == "You are terse."
    assert features.head == features.tail == "Hello\nAnd now?"
    assert not features.has_tools
    assert features_of(messages=chat(("user", "x"), ("tool", "42"))).has_tools
    assert features_of(messages=chat(("user", "x")), tools='[{"type":"function"}]').has_tools
    wrapped = {"messages": json.loads(messages), "response_format": {"type": "json_object"}}
    assert features_of(messages=json.dumps(wrapped)).has_response_format


def test_thinking_and_end_tokens_are_inputs() -> None:
    """What a request says of thinking counts; min_tokens only where end tokens end an answer."""
    messages = chat(("user", "x"))
    assert features_of(messages=messages).thinking is None  # the chat template's default
    assert features_of(text_input="hi").thinking is False
    assert features_of(messages=messages, enable_thinking=True).thinking
    assert features_of(messages=messages, enable_thinking=False).thinking is False
    held = partial(features_of, messages=messages, sampling_param_min_tokens=7)
    assert held().min_tokens == 7
    assert held(sampling_param_ignore_eos=True).min_tokens == 0


def test_a_grammar_is_an_input() -> None:
    """A guided answer is a structured one, and goes to variants that can."""
    plain = features_of(messages=chat(("user", "x")))
    assert (plain.is_guided, plain.has_response_format) == (False, False)
    guided = features_of(messages=chat(("user", "x")), guided_decoding='{"json_object": true}')
    assert (guided.is_guided, guided.has_response_format) == (True, True)


def test_a_number_that_is_none_is_left_to_the_variant() -> None:
    """NaN in the typed contents of max_tokens stops nobody."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    tensor = request.inputs.add(name="sampling_param_max_tokens", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(math.nan)
    read = read_request(request.SerializeToString())
    assert read_features(read, read_hints(read, TASKS, (0, 1, 3))).max_tokens == 128


def test_long_chat_messages_are_read_at_their_ends() -> None:
    """Beyond the limit no JSON is parsed, and the ends and the system prompt are still found."""
    body = "word " * 20_000
    messages = chat(("system", "Answer from the text."), ("user", f"BEGIN\n{body}END?"))
    assert len(messages) > MAX_JSON_BYTES
    features = features_of(messages=messages)
    assert features.system == "Answer from the text."
    assert "BEGIN\nword" in features.head
    assert "END?" in features.tail[-20:]
    assert len(features.head) == len(features.tail) == WINDOW_CHARS
    assert features.num_chars == pytest.approx(len(messages), rel=0.01)


@pytest.mark.parametrize("size", [1, WINDOW_CHARS, 2 * WINDOW_BYTES, 2 * WINDOW_BYTES + 1, 99_999])
@pytest.mark.parametrize("letter", ["a", "ß", "語", "🙂"])
def test_windows_hold_whole_characters_of_any_text(size: int, letter: str) -> None:
    """Neither window ever begins or ends inside a character."""
    features = features_of(text_input=letter * size)
    assert features.head == letter * min(size, WINDOW_CHARS)
    assert features.tail == letter * min(size, WINDOW_CHARS)
    assert features.num_chars == pytest.approx(size, rel=0.01)


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_prompt_breaks_the_reading(text: bytes, messages: bytes) -> None:
    """Whatever bytes are sent as prompts, features come out, bounded; their variant will judge."""
    for features in (features_of(text_input=text), features_of(messages=messages)):
        assert len(features.head) <= WINDOW_CHARS
        assert len(features.system) <= WINDOW_CHARS


@pytest.mark.parametrize(
    "messages",
    ["[" * 30_000, "[" * 90_000, "{}", "null", '{"messages": 3}', '[{"role": 1, "content": {}}]'],
)
def test_json_that_is_no_chat_has_no_features(messages: str) -> None:
    """Hostile or mistaken JSON is for the variant to refuse; it costs nothing here."""
    features = features_of(messages=messages)
    assert features.system == ""
    assert not features.has_tools


def test_messages_that_are_not_read_here_count_all_the_same() -> None:
    """A variant may read deeper ones than a gateway, whose stack is another."""
    deep = 5_000 * "["
    text = f'[{{"role": "user", "content": "x", "x": {deep}}}]'
    assert features_of(messages=text).prompt_tokens == len(text) // 4


def test_hints() -> None:
    """The gateway's parameters arrive as they were sent; auto is the same as none."""
    hints = {
        "task": "qa",
        "draft_length": "3",
        "session_id": "s",
        "tenant": "t",
        "latency_class": "strict",
    }
    features = features_of(hints, text_input="x")
    assert (features.hint_task, features.hint_draft_length) == ("qa", 3)
    assert (features.session_id, features.tenant, features.latency_class) == ("s", "t", "strict")
    auto = features_of({"task": "auto", "draft_length": "auto"}, text_input="x")
    assert (auto.hint_task, auto.hint_draft_length) == (None, None)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf")])
def test_a_temperature_that_is_no_number_counts_as_absent(temperature: float) -> None:
    """The variant refuses it; the policy never sees it."""
    features = features_of(text_input="x", sampling_param_temperature=temperature)
    assert features.temperature == 0.0


@pytest.mark.parametrize("version", ["2", "01", "-1", "x" * 1000])
def test_another_version_is_refused(version: str) -> None:
    """The public model has one, whichever its variants have."""
    for known in ("", "1"):
        known_request = pb.ModelInferRequest(model_name="qwen_mtp", model_version=known)
        check_request(read_request(known_request.SerializeToString()))
    request = pb.ModelInferRequest(model_name="qwen_mtp", model_version=version)
    with pytest.raises(InputError, match=f"no version '{version[:256]}': leave the version out"):
        check_request(read_request(request.SerializeToString()))


def test_tensors_in_shared_memory_are_refused() -> None:
    """Registering shared memory is refused on the public port, so that using it is, too."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InputError, match="input 'text_input' lies in shared memory"):
        check_request(read_request(request.SerializeToString()))


def test_outputs_have_no_parameters() -> None:
    """Triton would write them into shared memory, for example."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    output = request.outputs.add(name="text_output")
    output.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InputError, match="output 'text_output' has parameters"):
        check_request(read_request(request.SerializeToString()))


PASTED = "The keeper of the lighthouse wrote down each ship that passed, and its cargo. "
QUESTION = "How many ships passed in winter?"


@pytest.mark.parametrize("size", [20, 1_000])  # the longer messages are never parsed
def test_a_question_of_pasted_text_is_seen_in_every_form(size: int) -> None:
    """In a text, in one that went through a template, in messages; of several turns in the last."""
    text = f"{PASTED * size}\n{QUESTION}"
    for form in (
        {"text_input": text},
        {"text_input": f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"},
        {"messages": chat(("user", text))},
        {"messages": chat(("system", "Help."), ("user", f"{QUESTION}\n{PASTED * size}"))},
        {"messages": chat(("user", "Hello."), ("assistant", "Hello."), ("user", text))},
    ):
        assert features_of(**form).asks_of_pasted_text, form
    for form in (
        {"text_input": PASTED * size},
        {"messages": chat(("user", text), ("assistant", "Two."), ("user", "And in summer?"))},
        {"messages": chat(*[("user", QUESTION)] * size)},
    ):
        assert not features_of(**form).asks_of_pasted_text, form


def test_the_system_prompt_names_the_app_in_every_form() -> None:
    """The same one, whether messages are parsed or too long for that; none without a prompt."""
    system = "You answer for a library. Today is 2026-11-29."
    forms = [
        {"messages": chat(("system", system), ("user", "Hello."))},
        {"messages": chat(("system", system), ("user", "Hello. " * 10_000))},
        {"text_input": f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHello."},
    ]
    (name,) = {features_of(**form).app for form in forms}
    assert name
    assert features_of(messages=chat(("user", "Hello."))).app is None
