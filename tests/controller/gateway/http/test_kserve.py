"""Inference over HTTP as tritonclient.http does it, through the gateway and read by itself."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.gateway_fixtures import GatewayThread, running_gateway
from tests.http_client import ask
from trt_mtp.controller.gateway.http.kserve_json import JSON_SIZE, infer_answer, read_infer
from trt_mtp.errors import InputError
from trt_mtp.serve.triton import TritonServer

PATH = "/v2/models/qwen_mtp/infer"
SCRIPT = json.dumps({"tokens": 3, "word": "ü"})


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with HTTP."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def tensor(name: str, values: np.ndarray[Any, Any], datatype: str, is_binary: bool) -> Any:
    """An input as tritonclient.http has it."""
    found = tritonclient.http.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=is_binary)
    return found


@pytest.mark.parametrize("in_binary", [False, True])
@pytest.mark.parametrize("out_binary", [None, False, True])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_tritonclient_infers(
    gateway: GatewayThread, in_binary: bool, out_binary: bool | None, compression: str | None
) -> None:
    """A stock client gets the answer, whichever way it sends and wants the tensors."""
    names = ("text_output", "num_output_tokens")
    outputs = [
        tritonclient.http.InferRequestedOutput(name, binary_data=out_binary) for name in names
    ]
    client = tritonclient.http.InferenceServerClient(gateway.gateway.http_address)
    result = client.infer(
        "qwen_mtp",
        [
            tensor("text_input", np.array([SCRIPT.encode()], np.object_), "BYTES", in_binary),
            tensor("sampling_param_max_tokens", np.array([7], np.int32), "INT32", in_binary),
        ],
        outputs=None if out_binary is None else outputs,
        request_id="r",
        parameters={"draft_length": "3"},
        request_compression_algorithm=compression,
    )
    client.close()
    response = result.get_response()
    assert response["id"] == "r"
    assert response["model_name"] == "qwen_mtp"
    assert response["parameters"]["variant"] == "k3"
    (text,) = result.as_numpy("text_output")
    assert (text.decode() if isinstance(text, bytes) else text) == "ü2"
    assert result.as_numpy("num_output_tokens").tolist() == [3]
    shown = {output["name"] for output in response["outputs"]}
    assert shown == set(names) if out_binary is not None else shown > set(names)


def test_tritonclient_gets_the_sentence_of_a_refusal(gateway: GatewayThread) -> None:
    """What the gateway refuses is an InferenceServerException with the same words as over gRPC."""
    client = tritonclient.http.InferenceServerClient(gateway.gateway.http_address)
    text = tensor("text_input", np.array([b"x"], np.object_), "BYTES", True)
    with pytest.raises(tritonclient.utils.InferenceServerException, match="did you mean math"):
        client.infer("qwen_mtp", [text], parameters={"task": "maths"})
    client.close()


INPUT = {"name": "input_ids", "datatype": "INT32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "inputs has to be a JSON list"),
        ([3], "each of inputs has to be a JSON object"),
        ([INPUT | {"name": 3}], "an input's name has to be a text"),
        ([INPUT | {"shape": [2.5]}], "the shape of input_ids has to be a list of whole"),
        ([INPUT | {"shape": [3]}], "input_ids has 2 values, and its shape says otherwise"),
        ([INPUT | {"data": [1, 2**40]}], "input_ids has to be a whole number of 32 bits"),
        ([INPUT | {"data": [[[[[[[[[1, 2]]]]]]]]]}], "more than 8 dimensions"),
        ([INPUT | {"datatype": "INT64"}], "input_ids is INT64; expected INT32"),
        ([INPUT | {"name": "ids", "datatype": "FP64"}], "ids is FP64; expected one of BYTES, BOOL"),
        ([INPUT | {"data": [1, 2.5]}], "input_ids has to be a whole number of 32 bits"),
        ([INPUT | {"parameters": {"binary_data_size": 9}}], "binary_data_size of input_ids"),
        ([INPUT | {"parameters": []}], "parameters of input_ids has to be a JSON object"),
    ],
)
def test_wrong_inputs_are_named(gateway: GatewayThread, inputs: Any, sentence: str) -> None:
    """A body that means no request is refused with a sentence, and status 400."""
    reply = ask(gateway.gateway.http_address, "POST", PATH, {"inputs": inputs})
    assert reply.status == 400
    assert sentence in reply.error


@pytest.mark.parametrize("size", [None, "60"])
def test_binary_tensors_without_the_size_of_their_json(size: str | None) -> None:
    """A body that was copied from a client's log, without that header, or with another body's."""
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES"}
    head = {"inputs": [tensor | {"parameters": {"binary_data_size": 5}}]}
    body = json.dumps(head).encode() + b"\x01\0\0\0a"
    with pytest.raises(InputError, match=r"not JSON.*; with binary tensors, the header"):
        read_infer(body, size, "qwen_mtp")


def test_a_body_that_would_be_the_only_input(gateway: GatewayThread) -> None:
    """Triton's raw binary request, which goes to models of one input."""
    headers = {JSON_SIZE: "0", "Content-Type": "application/octet-stream"}
    reply = ask(gateway.gateway.http_address, "POST", PATH, b"\x01\0\0\0a", headers=headers)
    assert reply.status == 400
    assert "the model's only input, and qwen_mtp has several: send JSON" in reply.error


@pytest.mark.parametrize(
    ("default", "stated", "binary"),
    [
        (True, {}, {"a", "b"}),
        (True, {"a": False}, {"b"}),
        (True, {"a": True}, {"a", "b"}),
        (False, {"a": True}, {"a"}),
        (False, {}, set()),
    ],
)
def test_which_outputs_are_binary(default: bool, stated: dict[str, bool], binary: set[str]) -> None:
    """What an output says itself counts before what the request says of all."""
    outputs = [
        {"name": name, "parameters": {"binary_data": stated[name]}}
        if name in stated
        else {"name": name}
        for name in ("a", "b")
    ]
    body = {"inputs": [], "outputs": outputs, "parameters": {"binary_data_output": default}}
    _, wanted = read_infer(json.dumps(body).encode(), None, "m")
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=[b"\1\0\0\0"] * 2)
    for name in ("a", "b"):
        response.outputs.add(name=name, datatype="INT32", shape=[1])
    answer = infer_answer(response, wanted)
    shown = json.loads(answer.body[: answer.json_size])["outputs"]
    assert {output["name"] for output in shown if "data" not in output} == binary


def test_whole_numbers_in_another_form() -> None:
    """Some clients write 16.0, which is 16 in JSON."""
    tensor = INPUT | {"data": [1.0, 2.0]}
    body = {"inputs": [tensor], "parameters": {"priority": 5.0}}
    request, _ = read_infer(json.dumps(body).encode(), None, "m")
    assert request.raw_input_contents[0] == b"\1\0\0\0\2\0\0\0"
    assert request.parameters["priority"].int64_param == 5


def test_what_follows_the_json_has_to_be_somebodys() -> None:
    """Bytes that no input claims, and a size of JSON beyond the body, are refused."""
    body = json.dumps({"inputs": [INPUT]}).encode()
    with pytest.raises(InputError, match="3 bytes of the request's body belong to no input"):
        read_infer(body + b"abc", str(len(body)), "m")
    for size in ("-1", str(len(body) + 1), "1e3", "٣"):
        with pytest.raises(InputError, match=JSON_SIZE):
            read_infer(body, size, "m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(value=JSON, rest=st.binary(max_size=8), size=st.none() | st.integers(0, 200).map(str))
def test_any_body_is_a_request_or_refused(value: Any, rest: bytes, size: str | None) -> None:
    """Nothing that a client sends ends in anything but a request or an InputError."""
    try:
        request, wanted = read_infer(json.dumps(value).encode() + rest, size, "m")
    except InputError:
        return
    assert request.model_name == "m"
    assert len(request.inputs) == len(request.raw_input_contents)
    assert wanted.stated.keys() <= {output.name for output in request.outputs}


def test_an_answer_has_no_parameter_of_grpcs_stream() -> None:
    """What says that a gRPC message was the last one is left out."""
    request, wanted = read_infer(b'{"inputs": []}', None, "m")
    assert not request.inputs
    response = pb.ModelInferResponse(model_name="m")
    response.parameters["triton_final_response"].bool_param = True
    assert json.loads(infer_answer(response, wanted).body)["parameters"] == {}
