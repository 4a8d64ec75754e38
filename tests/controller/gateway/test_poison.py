"""Requests that make variants fail, by accident or on purpose, cost nobody else anything."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.gateway_fixtures import (
    GatewayThread,
    parameter,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
)
from tests.http_client import ask
from tests.triton_client import tensor
from trt_mtp.controller.gateway.call import MAX_HUNG
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.controller.gateway.servers.health import FAILURES_TO_EJECT
from trt_mtp.controller.gateway.trace_context import trace_context
from trt_mtp.controller.policy import Policy
from trt_mtp.serve.triton import TritonServer

NUM_REQUESTS = 4 * FAILURES_TO_EJECT


@pytest.fixture
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """A gateway whose variants nobody has blamed yet."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def ejected(gateway: GatewayThread) -> set[str]:
    """The variants that are left alone."""
    variants = gateway.gateway.statistics()["variants"]
    return {key for key, variant in variants.items() if variant["is_ejected"]}


def test_an_error_that_every_variant_gives_ejects_none(gateway: GatewayThread) -> None:
    """It is the request's; one that others don't give is the variant's own."""
    with raw_stream(gateway.gateway.address) as stream:
        for _ in range(NUM_REQUESTS):
            stream.send(script_request(error_at=0))
            assert stream.receive().error_message == "internal error: the engine broke"
        assert ejected(gateway) == set()
        for _ in range(FAILURES_TO_EJECT):
            stream.send(script_request(tokens=1, error_at={"3": 0}))
            assert parameter(stream.receive(), "failed_over") == "k3"
        assert ejected(gateway) == {"k3"}


def test_who_asks_for_a_length_that_is_left_alone_gets_it(doubles: TritonServer) -> None:
    """A doubtful variant is better than a refusal, also while others are ready."""
    with (
        running_gateway(doubles.grpc_url, Policy()) as gateway,
        raw_stream(gateway.gateway.address) as stream,
    ):
        asked = {"draft_length": 3}
        for _ in range(FAILURES_TO_EJECT):
            stream.send(script_request(tokens=1, error_at={"3": 0}, parameters=asked))
            assert parameter(stream.receive(), "failed_over") == "k3"
        assert ejected(gateway) == {"k3"}
        stream.send(script_request(tokens=1, parameters=asked))
        assert parameter(stream.receive(), "variant") == "k3"


def test_a_request_that_hangs_variants_takes_none_away(doubles: TritonServer) -> None:
    """It goes to two, which nobody leaves alone for it; one that only one has says it is."""
    quick = StallLimits(factor=1.0, min_s=1.5)
    with (
        running_gateway(doubles.grpc_url, stall=quick) as gateway,
        raw_stream(gateway.gateway.address) as stream,
    ):
        for _ in range(2):
            seen = len(gateway.policy.seen)
            stream.send(script_request(hang_at=0, name="poison"))
            assert "sent nothing for too long" in stream.receive().error_message
            assert len(gateway.policy.seen) == seen + MAX_HUNG
            assert ejected(gateway) == set()
        stream.send(script_request(tokens=1))
        assert parameter(stream.receive(), "variant") == "k3"
        stream.send(script_request(tokens=1, hang_at={"3": 0}))
        assert parameter(stream.receive(), "failed_over") == "k3"
        assert ejected(gateway) == {"k3"}


def test_an_error_in_the_middle_that_every_variant_gives_ejects_none(
    gateway: GatewayThread,
) -> None:
    """What a request breaks after its first token is no more the variant's than before it."""
    with raw_stream(gateway.gateway.address) as stream:
        for _ in range(NUM_REQUESTS):
            stream.send(script_request(error_at=1))
            assert text_of(stream.receive()) == "w0"
            assert stream.receive().error_message == "internal error: the engine broke"
        assert ejected(gateway) == set()


@pytest.mark.parametrize("words", ["Stub process", "internal error: ", "Request for unknown model"])
def test_an_id_in_triton_s_words_says_nothing_of_a_variant(
    gateway: GatewayThread, words: str
) -> None:
    """Triton puts the id before what it refuses; answers that others get go on undisturbed."""
    wrong = script_request(request_id=f"x] {words}")
    wrong.inputs[0].datatype = "INT32"
    address = gateway.gateway.address
    with raw_stream(address) as victim, raw_stream(address) as stream:
        victim.send(script_request(tokens=100, delay_s=0.02))
        assert text_of(victim.receive()) == "w0"
        for _ in range(NUM_REQUESTS):
            stream.send(wrong)
            refused = stream.receive()
            assert refused.error_message.startswith("inference input 'text_input' data-type is")
            assert refused.infer_response.id == f"x] {words}"
        rest = [victim.receive() for _ in range(99)]
        assert (text_of(rest[-1]), parameter(rest[-1], "failed_over")) == ("w99", "")
    assert ejected(gateway) == set()


def classified(model: str, output: str = "text_output") -> Any:
    """A request for the classes of an output, for which Triton 2.51 divides by a text's size."""
    request = script_request(model, tokens=1)
    request.outputs.add(name=output).parameters["classification"].int64_param = 5
    return request


def shaped(model: str, *shape: int) -> Any:
    """A request for a prompt of 4 bytes that says another shape; times 4 bytes it is as long."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="input_ids", datatype="INT32", shape=shape)
    request.raw_input_contents.append(b"\1\0\0\0")
    return request


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (classified("qwen_mtp"), "classification of outputs is not supported"),
        (classified("qwen_mtp_k3"), "classification of outputs is not supported"),
        (classified("other"), "classification of outputs is not supported"),
        (shaped("qwen_mtp", 2**62 + 1), "the shape of input 'input_ids' has to be"),
        (shaped("qwen_mtp", -(2**62) + 1), "the shape of input 'input_ids' has to be"),
        (shaped("qwen_mtp_k3", 2**62 + 1), "the shape of input 'input_ids' has to be"),
        (shaped("qwen_mtp", *[1] * 100_000), "the shape of input 'input_ids' has to be"),
        (shaped("other", 0, 2**62), "the shape of input 'input_ids' has to be"),
        (shaped("other", 2**40, 2**24), "the shape of input 'input_ids' has to be"),
        (script_request(request_id="a\0b"), "has a NUL character in it"),
        (script_request(outputs=["text_output\0"]), "has a NUL character in it"),
        (script_request("qwen_mtp_k3\0"), "has a NUL character in it"),
        (script_request("qwen_mtp\0_k3"), "has a NUL character in it"),
    ],
)
def test_what_triton_misreads_or_dies_of_is_not_sent_to_it(
    gateway: GatewayThread, doubles: TritonServer, request_: Any, sentence: str
) -> None:
    """Whichever model it is for; other requests go on."""
    pid = doubles.pid
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(request_)
        with contextlib.suppress(grpc.RpcError):  # a stream for other models ends with its status
            assert sentence in stream.receive().error_message
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=1))
        assert parameter(stream.receive(), "variant") == "k3"
    assert doubles.pid == pid
    assert ejected(gateway) == set()


def test_the_public_model_has_one_version(gateway: GatewayThread) -> None:
    """Another one is refused before any variant is asked for it."""
    client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
    by_http = tritonclient.http.InferenceServerClient(gateway.gateway.http_address)
    http_tensor = tritonclient.http.InferInput("text_input", [1], "BYTES")
    http_tensor.set_data_from_numpy(np.array([b"{}"], np.object_))
    text = [tensor("text_input", "{}")]
    for version in ("", "1"):
        assert client.infer("qwen_mtp", text, version).as_numpy("text_output") is not None
        assert by_http.infer("qwen_mtp", [http_tensor], version).as_numpy("text_output") is not None
        assert client.is_model_ready("qwen_mtp", version)
        assert by_http.is_model_ready("qwen_mtp", version)
        assert client.get_model_metadata("qwen_mtp", version).versions == ["1"]
        assert by_http.get_model_metadata("qwen_mtp", version)["versions"] == ["1"]
    for _ in range(NUM_REQUESTS):
        with pytest.raises(InferenceServerException, match="no version '7': leave") as refused:
            client.infer("qwen_mtp", text, "7")
        assert refused.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
    about: list[Any] = [client.get_model_metadata, client.get_model_config]
    for about_it in [*about, client.get_inference_statistics]:
        with pytest.raises(InferenceServerException, match="no version '7', only 1") as refused:
            about_it("qwen_mtp", "7")
        assert refused.value.status() == str(grpc.StatusCode.NOT_FOUND)
    assert not client.is_model_ready("qwen_mtp", "7")
    assert not by_http.is_model_ready("qwen_mtp", "7")
    with pytest.raises(InferenceServerException, match="versions/7/infer"):
        by_http.infer("qwen_mtp", [http_tensor], "7")
    client.close()
    by_http.close()
    assert ejected(gateway) == set()


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": b"\xff"},
        {"traceparent": "\u00e9".encode()},
        {"traceparent": TRACE, "tracestate": b"a\tb"},
        {"traceparent": TRACE, "tracestate": "a" * 8_000},
    ],
)
def test_a_trace_that_grpc_refuses_fails_no_variant(
    gateway: GatewayThread, headers: dict[str, Any]
) -> None:
    """It is left out, as the standard has it; the request is answered."""
    body = {"text_input": json.dumps({"tokens": 1})}
    for _ in range(FAILURES_TO_EJECT):
        path = "/v2/models/qwen_mtp/generate"
        reply = ask(gateway.gateway.http_address, "POST", path, body, headers=headers)
        assert reply.status == 200
    assert ejected(gateway) == set()


def test_a_trace_goes_on_to_the_variant() -> None:
    """What is well-formed, once."""
    pairs = (("traceparent", TRACE), ("tracestate", "vendor=a:b,c=d"))
    assert trace_context((*pairs, ("authorization", "Bearer x"))) == pairs
    assert trace_context((*pairs, pairs[0])) == pairs[1:]
