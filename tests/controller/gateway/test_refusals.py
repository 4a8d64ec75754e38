"""Requests that no variant can ever answer: refused alike at every door, and for good."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.gateway_fixtures import GatewayThread, raw_stream, running_gateway, script_request
from tests.http_client import ask
from trt_mtp.serve.triton import TritonServer

LIMIT = 512  # tokens that a double holds
TOO_LONG = f"the prompt has {LIMIT} tokens: with its answer it may have at most {LIMIT}"
IDS = [1] * LIMIT


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with all doors."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def post(gateway: GatewayThread, path: str, body: Any) -> Any:
    """What is answered over HTTP."""
    return ask(str(gateway.gateway.http_address), "POST", path, body)


def ids_request() -> Any:
    """A pb.ModelInferRequest with a prompt that is too long for all."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    request.inputs.add(name="input_ids", datatype="INT32", shape=[LIMIT])
    request.raw_input_contents.append(np.array(IDS, np.int32).tobytes())
    return request


def test_a_prompt_too_long_for_all_over_grpc(gateway: GatewayThread) -> None:
    """On a stream, on one that wants statuses, and in a single answer: INVALID_ARGUMENT."""
    address = gateway.gateway.address
    with raw_stream(address) as stream:
        stream.send(ids_request())
        assert stream.receive().error_message == TOO_LONG
    with raw_stream(address, (("triton_grpc_error", "true"),)) as stream:
        stream.send(ids_request())
        with pytest.raises(grpc.RpcError) as failed:
            stream.receive()
    assert (failed.value.code(), failed.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        TOO_LONG,
    )
    client = tritonclient.grpc.InferenceServerClient(address)
    ids = tritonclient.grpc.InferInput("input_ids", [LIMIT], "INT32")
    ids.set_data_from_numpy(np.array(IDS, np.int32))
    with pytest.raises(InferenceServerException, match=TOO_LONG) as refused:
        client.infer("qwen_mtp", [ids])
    assert refused.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
    client.close()


def test_a_prompt_too_long_for_all_over_http(gateway: GatewayThread) -> None:
    """Status 400, in each door's form; no client is told to come again."""
    for path in ("generate", "generate_stream"):
        reply = post(gateway, f"/v2/models/qwen_mtp/{path}", {"input_ids": IDS})
        assert (reply.status, reply.json()) == (400, {"error": TOO_LONG})
    tensor = {"name": "input_ids", "datatype": "INT32", "shape": [LIMIT], "data": IDS}
    reply = post(gateway, "/v2/models/qwen_mtp/infer", {"inputs": [tensor]})
    assert (reply.status, reply.json()) == (400, {"error": TOO_LONG})
    for streams in (False, True):
        body = {"model": "qwen_mtp", "prompt": IDS, "stream": streams}
        reply = post(gateway, "/v1/completions", body)
        assert reply.status == 400
        assert reply.json()["error"] == {
            "message": f"This model's maximum context length is {LIMIT} tokens: {TOO_LONG}",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "context_length_exceeded",
        }
        assert "Retry-After" not in reply.headers


def test_a_refusal_speaks_of_the_model_that_was_asked_for(gateway: GatewayThread) -> None:
    """Not of the variant that Triton refused it for, at any door."""
    wrong = script_request()
    wrong.inputs[0].datatype = "INT32"
    said = []
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(wrong)
        said.append(stream.receive().error_message)
    with tritonclient.grpc.InferenceServerClient(gateway.gateway.address) as client:
        text = tritonclient.grpc.InferInput("text_output", [1], "BYTES")
        text.set_data_from_numpy(np.array([b"{}"], np.object_))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("qwen_mtp", [text])
        said.append(str(refused.value))
    tensor = {"name": "text_input", "datatype": "INT32", "shape": [1], "data": [1]}
    reply = post(gateway, "/v2/models/qwen_mtp/infer", {"inputs": [tensor]})
    assert reply.status == 400
    said.append(json.dumps(reply.json()))
    for sentence in said:
        assert "qwen_mtp" in sentence
        assert "qwen_mtp_k" not in sentence, sentence
