"""What the load client makes of the messages that came in."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.calibrate.load_client import OUTPUTS, parse, request_bytes
from trt_mtp.controller.calibrate.load_streams import RawAnswer
from trt_mtp.controller.client import Prompt
from trt_mtp.serve.kserve import EMPTY_FINAL


def message(**values: list[int]) -> bytes:
    """A stream response with INT32 outputs."""
    response = pb.ModelStreamInferResponse()
    for name, numbers in values.items():
        response.infer_response.outputs.add(name=name, datatype="INT32", shape=[len(numbers)])
        content = struct.pack(f"<{len(numbers)}i", *numbers)
        response.infer_response.raw_output_contents.append(content)
    return bytes(response.SerializeToString())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20).filter(any))
def test_tokens_and_times_are_those_of_the_messages(sizes: list[int]) -> None:
    """However tokens are spread over messages: all count, and messages without one have no time."""
    raw = RawAnswer(sent_s=10.0)
    for at, size in enumerate(sizes):
        raw.arrived_s.append(11.0 + at)
        raw.messages.append(message(output_ids=[7] * size))
    raw.arrived_s.append(99.0)
    raw.messages.append(message(num_steps=[4], num_input_tokens=[9], accepted_per_position=[3, 1]))
    answer = parse(raw)
    with_tokens = [11.0 + at for at, size in enumerate(sizes) if size]
    assert answer.num_output_tokens == sum(sizes)
    assert answer.num_first_tokens == next(size for size in sizes if size)
    assert answer.ttft_s == with_tokens[0] - 10.0
    assert answer.decode_s == with_tokens[-1] - with_tokens[0]
    assert answer.itl_s == tuple(b - a for a, b in pairwise(with_tokens))
    assert (answer.num_steps, answer.num_input_tokens) == (4, 9)
    assert answer.accepted_per_position == (3, 1)


def test_time_per_token_and_step_leave_the_first_message_out() -> None:
    """Five tokens in 2 s after a first message of three, of eight steps: 0.4 s a token."""
    raw = RawAnswer(0.0, [1.0, 3.0], [message(output_ids=[1] * 3), message(output_ids=[1] * 5)])
    raw.messages[1] = message(output_ids=[1] * 5, num_steps=[7])
    answer = parse(raw)
    assert answer.tpot_s == pytest.approx(0.4)
    assert answer.step_s == pytest.approx(0.4)  # 7 steps for 7 tokens, 5 of them after 1.0


def test_failures_are_values() -> None:
    """An error message, an answer without tokens and a lost connection are told apart."""
    broken = pb.ModelStreamInferResponse(error_message="the engine broke").SerializeToString()
    assert parse(RawAnswer(0.0, [1.0], [broken])).error == "the engine broke"
    assert "no token" in parse(RawAnswer(0.0, [1.0], [message(num_steps=[1])])).error
    lost = parse(RawAnswer(error="gone", is_lost=True))
    assert (lost.error, lost.is_lost) == ("gone", True)
    assert lost.tpot_s == lost.step_s == 0.0


def test_a_request_asks_for_what_is_read() -> None:
    """The bytes are a request for the model with its prompt, tools and the outputs counted on."""
    prompt = Prompt([{"role": "user", "content": "é"}], [{"type": "function"}], 9, 0.5, 3)
    request = pb.ModelInferRequest.FromString(request_bytes("m", prompt))
    assert request.model_name == "m"
    assert request.parameters[EMPTY_FINAL].bool_param
    inputs = dict(zip([i.name for i in request.inputs], request.raw_input_contents, strict=True))
    assert inputs["tools"][4:] == b'[{"type": "function"}]'
    assert struct.unpack("<i", inputs["sampling_param_max_tokens"]) == (9,)
    assert tuple(output.name for output in request.outputs) == OUTPUTS
