"""The largest requests that are admitted, of every kind, hold up nobody else's answers.

What the event loop does without a pause is counted in processor time, and compared with what Python
needs on the same machine to read a long list: about 50 ms where that list takes 17.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.gateway_fixtures import GatewayThread, raw_stream, running_gateway, script_request
from tests.http_client import ask
from trt_mtp.controller.gateway.http.generate_json import MAX_JSON_BYTES, json_object
from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.schema import (
    MAX_CHOICES,
    ChatRequest,
    CompletionRequest,
    read_as,
)
from trt_mtp.controller.request_limits import MAX_PARTS, MAX_REQUEST_ID_CHARS
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import MAX_EMITTED_IDS, MAX_STOP_BYTES, MAX_STOP_TEXTS
from trt_mtp.serve.json_weight import MAX_DIGITS, MAX_WEIGHT
from trt_mtp.serve.kserve import MAX_PARSED_BYTES
from trt_mtp.serve.triton import TritonServer

MAX_STOP = 3.0  # of the time that YARDSTICK takes
YARDSTICK = b"[" + b"1," * 2**18 + b"1]"
NUM_TRIES = 3  # the best one counts
MAX_MESSAGE = 4 * 1024 * 1024
URL = "/v2/models/qwen_mtp/generate"
INFER_URL = "/v2/models/qwen_mtp/infer"


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway for all."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


@pytest.fixture(scope="module")
def limit_s() -> float:
    """Processor seconds that are as long as a stop may be on this machine."""
    return MAX_STOP * min(_thread_s(lambda: json.loads(YARDSTICK)) for _ in range(10))


def _thread_s(work: Callable[[], Any]) -> float:
    before = time.thread_time()
    with contextlib.suppress(InputError):
        work()
    return time.thread_time() - before


def longest_stop(gateway: GatewayThread, work: Callable[[], None]) -> float:
    """Processor seconds of the longest turn of the gateway's event loop during `work`."""
    longest, is_over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not is_over:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    ticking = gateway.run(tick())
    try:
        work()
    finally:
        is_over = True
        ticking.result(60)
    return longest


def with_input(name: str, datatype: str, size: int, content: bytes) -> Any:
    """A request to a double with one more input."""
    request = script_request(tokens=1)
    request.inputs.add(name=name, datatype=datatype, shape=[size])
    request.raw_input_contents.append(content)
    return request


def stop_texts() -> Any:
    """As many and as long as may be."""
    text = MAX_STOP_BYTES.to_bytes(4, "little") + b"x" * MAX_STOP_BYTES
    return with_input("sampling_param_stop", "BYTES", MAX_STOP_TEXTS, text * MAX_STOP_TEXTS)


def emitted() -> Any:
    """Tokens that the client has already."""
    content = b"\1\0\0\0" * MAX_EMITTED_IDS
    return with_input("emitted_ids", "INT32", MAX_EMITTED_IDS, content)


def typed_emitted() -> Any:
    """The same, not as raw contents."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    request.inputs.add(name="emitted_ids", datatype="INT32", shape=[MAX_EMITTED_IDS])
    request.inputs[0].contents.int_contents.extend([1] * MAX_EMITTED_IDS)
    return request


def typed_ids() -> Any:
    """A prompt that is parsed, and is as long as it may be then."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    request.inputs.add(name="input_ids", datatype="INT32", shape=[1])
    request.inputs[0].contents.int_contents.extend([1] * (MAX_PARSED_BYTES - 100))
    return request


def many_parts() -> Any:
    """Inputs and outputs, each with parameters."""
    request = script_request(request_id="i" * MAX_REQUEST_ID_CHARS)
    for number in range(MAX_PARTS - len(request.inputs)):
        tensor = request.inputs.add(name=f"none{number}", datatype="BYTES", shape=[1])
        for key in range(900):
            tensor.parameters[f"{key}"].bool_param = True
    request.outputs.extend(
        pb.ModelInferRequest.InferRequestedOutputTensor(name="text_output")
        for _ in range(MAX_PARTS)
    )
    return request


def long_text() -> Any:
    """A prompt of the longest message."""
    return script_request(tokens=1, padding="x" * (MAX_MESSAGE - 1000))


def unknown_parameter() -> Any:
    """A name that is far from all that are known."""
    return script_request(parameters={"draft_length" * (MAX_PARSED_BYTES // 13): True})


MESSAGES = [
    stop_texts,
    emitted,
    typed_emitted,
    typed_ids,
    many_parts,
    long_text,
    unknown_parameter,
]


@pytest.mark.parametrize("make", MESSAGES)
def test_the_largest_messages_stop_nobody(
    gateway: GatewayThread, limit_s: float, make: Callable[[], Any]
) -> None:
    """Answered or refused, over gRPC."""
    request = make()

    def ask_once() -> None:
        with raw_stream(gateway.gateway.address) as stream:
            stream.send(request)
            stream.receive()

    stops = [longest_stop(gateway, ask_once) for _ in range(NUM_TRIES)]
    assert min(stops) < limit_s, stops


TOKENS: list[int] = [1] * (MAX_WEIGHT - 1_000)
BODIES = {
    "ids": lambda: b'{"input_ids":[' + b"1," * (MAX_WEIGHT - 1_000) + b"1]}",
    "keys": lambda: json.dumps({f"{n}": n for n in range(MAX_WEIGHT // 13 - 100)}).encode(),
    "objects": lambda: b'{"text_input":[' + b"{}," * (MAX_WEIGHT // 4 - 100) + b"{}]}",
    "digits": lambda: b'{"x":[' + (b"7" * MAX_DIGITS + b",") * (MAX_JSON_BYTES // 325) + b"1]}",
    "more digits": lambda: b'{"x":[' + (b"7" * 4_300 + b",") * (MAX_JSON_BYTES // 4_310) + b"1]}",
    "deep": lambda: b'{"text_input":' + b"[" * (MAX_WEIGHT - 100),
    "text": lambda: json.dumps(
        {"text_input": "é" * (MAX_JSON_BYTES // 2 - 100)}, ensure_ascii=False
    ).encode(),
    "escapes": lambda: b'{"text_input":"' + b"\\n" * (6 * MAX_WEIGHT - 100) + b'"}',
    "tensors": lambda: json.dumps(
        {"inputs": [{"name": "input_ids", "datatype": "INT32", "shape": [9], "data": TOKENS}]}
    ).encode(),
    "one key": lambda: json.dumps({"draft_length" * (MAX_JSON_BYTES // 13): 1}).encode(),
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_largest_bodies_stop_nobody(gateway: GatewayThread, limit_s: float, kind: str) -> None:
    """Answered or refused, over HTTP. What a thread does that can't be interrupted counts, too."""
    body = BODIES[kind]()
    url = INFER_URL if kind == "tensors" else URL

    def ask_once() -> None:
        assert ask(gateway.gateway.http_address, "POST", url, body).status in (200, 400, 503)

    stops = [longest_stop(gateway, ask_once) for _ in range(NUM_TRIES)]
    assert min(stops) < limit_s, stops
    parsing = [_thread_s(lambda: json_object(body)) for _ in range(NUM_TRIES)]
    assert min(parsing) < limit_s, parsing


def test_answers_full_of_calls_stop_nobody(gateway: GatewayThread, limit_s: float) -> None:
    """A model can be asked for any text, and each mark in it is work."""
    script = {"texts": ["<tool_call></tool_call>" * 20_000]}
    tool = {"type": "function", "function": {"name": "f"}}
    messages = [{"role": "user", "content": json.dumps(script)}]
    body = json.dumps({"model": "qwen_mtp", "messages": messages, "tools": [tool]}).encode()

    def ask_once() -> None:
        url = "/v1/chat/completions"
        assert ask(gateway.gateway.http_address, "POST", url, body).status == 200

    stops = [longest_stop(gateway, ask_once) for _ in range(NUM_TRIES)]
    assert min(stops) < limit_s, stops


MANY: list[Any] = [-1] * MAX_WEIGHT  # none is what OpenAI's API takes
CHAT: dict[str, Any] = {
    "model": "qwen_mtp",
    "messages": [{"role": "user", "content": '{"tokens": 1}'}],
}
LONG = CHAT | {"messages": [{"role": "user", "content": '{"tokens": 1, "times": 100000}'}]}
PADDED = CHAT | {"messages": [{**CHAT["messages"][0], "name": "x" * 450_000}]}
KEYS = {f"{n}": n for n in range(MAX_WEIGHT // 13 - 100)}
OPENAI_BODIES: dict[str, dict[str, Any]] = {
    "keys": CHAT | KEYS,
    "options": CHAT | {"trt_mtp": KEYS},
    "stream options": CHAT | {"stream": True, "stream_options": KEYS},
    "template options": CHAT | {"chat_template_kwargs": KEYS},
    "biases": CHAT | {"logit_bias": KEYS},
    "stop tokens": CHAT | {"stop_token_ids": TOKENS},
    "schema": CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": KEYS}}},
    "messages": CHAT | {"messages": CHAT["messages"] * (MAX_WEIGHT // 32)},
    "ids": {"model": "qwen_mtp", "prompt": TOKENS},
    "prompts": {"model": "qwen_mtp", "prompt": [TOKENS[::MAX_CHOICES]] * MAX_CHOICES},
    "choices": CHAT | {"n": MAX_CHOICES},
    "padded choices": PADDED | {"n": MAX_CHOICES, "seed": 1},
    "streamed choices": CHAT | {"n": MAX_CHOICES, "stream": True},
    "long choices": LONG | {"n": MAX_CHOICES},
    "long streamed choices": LONG | {"n": MAX_CHOICES, "stream": True},
    "wrong choices": CHAT | {"n": MAX_CHOICES, "trt_mtp": {"task": "x"}},
}


@pytest.mark.parametrize("kind", OPENAI_BODIES)
def test_the_largest_bodies_in_openais_form_stop_nobody(
    gateway: GatewayThread, limit_s: float, kind: str
) -> None:
    """The same at that door, where one request may be for many answers."""
    values = OPENAI_BODIES[kind]
    body = json.dumps(values).encode()
    path = "/v1/completions" if "prompt" in values else "/v1/chat/completions"

    def ask_once() -> None:
        assert ask(gateway.gateway.http_address, "POST", path, body).status in (200, 400, 503)

    stops = [longest_stop(gateway, ask_once) for _ in range(NUM_TRIES)]
    assert min(stops) < limit_s, stops
    model: Any = CompletionRequest if "prompt" in values else ChatRequest
    for work in (lambda: json_object(body), lambda: read_as(model, values)):
        reading = [_thread_s(work) for _ in range(NUM_TRIES)]
        assert min(reading) < limit_s, reading


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": MANY},
        {"prompt": [MANY]},
        {"prompt": [[]] * (MAX_WEIGHT // 2)},
        CHAT | {"messages": MANY},
        CHAT | {"tools": MANY},
        CHAT | {"stop": MANY},
        CHAT | {"guided_choice": MANY},
        CHAT | {"prediction": {"type": "content", "content": MANY}},
    ],
)
def test_lists_are_read_to_the_first_wrong_value(limit_s: float, wrong: dict[str, Any]) -> None:
    """Not an error for each: that took seconds, in which nothing else is done."""

    chat, completion = partial(read_as, ChatRequest), partial(read_as, CompletionRequest)
    ask_for: Callable[[dict[str, Any]], Any] = completion if "prompt" in wrong else chat

    def read() -> None:
        with pytest.raises(ParameterError):
            ask_for({"model": "qwen_mtp", **wrong})

    reading = [_thread_s(read) for _ in range(NUM_TRIES)]
    assert min(reading) < limit_s, reading


@pytest.mark.parametrize("mark", [b"1,", b"[],", b"{},", b'"a":0,'])
def test_json_of_too_many_values_is_not_parsed(mark: bytes) -> None:
    """It is refused by its marks."""
    with pytest.raises(InputError, match="too many values"):
        json_object(b"[" + mark * MAX_WEIGHT)


def test_json_that_is_too_long_is_not_parsed() -> None:
    """It is refused by its length."""
    with pytest.raises(InputError, match="at most 4194304 are taken"):
        json_object(b" " * (MAX_JSON_BYTES + 1))


def test_the_smallest_chunks_stop_nobody(gateway: GatewayThread, limit_s: float) -> None:
    """Bodies of one byte in each, of several clients at once."""
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = head.encode() + b"1\r\n \r\n" * 2**15 + b"0\r\n\r\n"
    host, _, port = str(gateway.gateway.http_address).rpartition(":")

    def ask_once(_: int) -> bytes:
        with socket.create_connection((host, int(port)), 60) as connection:
            connection.sendall(body)
            return connection.recv(4096)

    def ask_all() -> None:
        with ThreadPoolExecutor(12) as clients:
            for answer in clients.map(ask_once, range(12)):
                assert answer.startswith(b"HTTP/1.1 400 ")

    assert min(longest_stop(gateway, ask_all) for _ in range(NUM_TRIES)) < limit_s
