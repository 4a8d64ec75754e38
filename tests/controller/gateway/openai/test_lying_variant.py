"""Answers that no variant of ours gives: the request ends, and says so."""

import json
import struct
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.failure import AnswerError
from trt_mtp.controller.gateway.openai.answer_reader import AnswerReader
from trt_mtp.controller.gateway.openai.logprobs import places_of

PLACE = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}


def test_what_is_said_is_read() -> None:
    """A place for each token; nothing without the output."""
    assert places_of(json.dumps([PLACE])) == [PLACE]
    assert places_of("") == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "3",
        "[3]",
        '[{"token": 3}]',
        json.dumps([{**PLACE, "top_logprobs": [{}]}]),
        json.dumps([{**PLACE, "logprob": "much"}]),
        json.dumps([{**PLACE, "bytes": 1_000_000}]),
        json.dumps([{**PLACE, "bytes": [256]}]),
    ],
)
def test_log_probabilities_that_are_none(text: str) -> None:
    """They are looked up by key, for each token."""
    with pytest.raises(AnswerError, match="log probabilities can't be read"):
        places_of(text)


@pytest.mark.parametrize(("datatype", "content"), [("BYTES", b"\xff"), ("INT32", b"")])
def test_a_number_of_another_type_is_none(datatype: str, content: bytes) -> None:
    """The text goes on."""
    response = pb.ModelStreamInferResponse()
    infer: Any = response.infer_response
    for name, kind, raw in (
        ("text_output", "BYTES", struct.pack("<I", 1) + b"a"),
        ("num_input_tokens", datatype, content),
    ):
        infer.outputs.add(name=name, datatype=kind, shape=[1])
        infer.raw_output_contents.append(raw)
    reader = AnswerReader()
    assert reader.read(response.SerializeToString()) == "a"
    assert reader.num_input_tokens == 0
