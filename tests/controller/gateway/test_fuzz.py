"""Input that nobody would send: no crash, no hang, nothing of one client's in another's stream."""

import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.fuzz.fuzz_gateway import CORPUS, READERS, read
from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
)
from tests.http_client import ask
from trt_mtp.controller.gateway.http.generate_json import read_generate
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS
from trt_mtp.serve.kserve import is_final
from trt_mtp.serve.triton import TritonServer

NUM_RUNS = 20_000  # of the coverage-guided fuzzer

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
Keys = st.sampled_from([spec.name for spec in INPUTS]) | st.sampled_from(
    ["id", "parameters", "task", "draft_length", "tenant", "priority", "timeout", ""]
)
Bodies = st.dictionaries(Keys | st.text(max_size=5), Json, max_size=5)


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway for all."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


@given(st.integers(0, len(READERS) - 1), st.binary(max_size=300))
@settings(max_examples=300)
def test_bytes_are_read_or_refused(reader: int, data: bytes) -> None:
    """Whatever bytes come in any place, they are read or refused in a sentence."""
    read(bytes([reader]) + data)


def seeds() -> list[bytes]:
    """One input of each kind that is well formed."""
    response = pb.ModelStreamInferResponse()
    infer = response.infer_response
    infer.model_name, infer.model_version, infer.id = "qwen_mtp_k3", "1", "id"
    for name, datatype, content in (
        ("text_output", "BYTES", b"\x02\0\0\0w0"),
        ("output_ids", "INT32", b"\7\0\0\0"),
        ("num_steps", "INT32", b"\1\0\0\0"),
    ):
        infer.outputs.add(name=name, datatype=datatype, shape=[1])
        infer.raw_output_contents.append(content)
    request = script_request(outputs=["text_output"], parameters={"task": "qa"}, tokens=1)
    body = json.dumps({"text_input": "a", "input_ids": [1], "parameters": {"task": "qa"}})
    messages = (request.SerializeToString(), response.SerializeToString(), body.encode())
    return [bytes([index]) + message for index, message in enumerate(messages)]


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """The same guided by coverage, for a bounded number of runs from a fixed seed."""
    for index, seed in enumerate(seeds()):
        read(seed)
        (tmp_path / f"seed-{index}").write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz.fuzz_gateway", f"-runs={NUM_RUNS}", "-seed=1"]
    command += [f"-artifact_prefix={tmp_path}/found-", str(tmp_path), str(CORPUS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Done {NUM_RUNS} runs" in result.stderr
    assert " cov: " in result.stderr  # or it is guided by nothing


@given(Bodies)
@settings(max_examples=300)
def test_json_becomes_tensors_that_hold_it_or_is_refused(body: dict[str, Any]) -> None:
    """A body that is taken has one tensor for each input in it, with as many elements."""
    try:
        request = read_generate(json.dumps(body).encode(), "qwen_mtp")
    except InputError:
        return
    assert len(request.raw_input_contents) == len(request.inputs)
    assert len({tensor.name for tensor in request.inputs}) == len(request.inputs)
    for tensor in request.inputs:
        value = {**body, **body.get("parameters", {})}[tensor.name]
        assert list(tensor.shape) == [len(value) if isinstance(value, list) else 1]


@given(st.binary(max_size=200) | Bodies.map(lambda body: json.dumps(body).encode()))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_http_body_gets_a_status(gateway: GatewayThread, body: bytes) -> None:
    """An answer or a refusal, never a failure of the gateway's own."""
    for path in ("generate", "generate_stream"):
        reply = ask(gateway.gateway.http_address, "POST", f"/v2/models/qwen_mtp/{path}", body)
        assert reply.status in (200, 400)
        assert reply.status == 200 or reply.error


Actions = st.lists(
    st.tuples(
        st.integers(0, 1),  # whose stream
        st.sampled_from(["answer", "same id", "refused", "other model", "breaks", "no model"]),
        st.integers(1, 4),  # tokens
    ),
    min_size=1,
    max_size=12,
)


@given(Actions, st.text(string.ascii_letters, max_size=4))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_streams_get_their_own_answers_and_nothing_else(
    gateway: GatewayThread, actions: list[tuple[int, str, int]], salt: str
) -> None:
    """Requests of all kinds, interleaved on two streams under the same ids, stay apart."""
    address = gateway.gateway.address
    with raw_stream(address) as one, raw_stream(address) as two:
        streams = (one, two)
        sent: list[int] = [0, 0]
        for owner, kind, tokens in actions:
            name = f"r{'' if kind == 'same id' else sent[owner]}"
            parameters: dict[str, Any] = {"task": "none"} if kind == "refused" else {}
            if kind == "other model":  # which otherwise sends no last message
                parameters["triton_enable_empty_final_response"] = True
            model = {"other model": "other", "no model": "nowhere"}.get(kind, "qwen_mtp")
            script: dict[str, Any] = {"tokens": tokens, "word": f"client{owner}-{salt}"}
            if kind == "breaks":
                script |= {"error_at": tokens - 1, "error_with_final": True}
            streams[owner].send(script_request(model, name, parameters=parameters, **script))
            sent[owner] += 1
        for owner, stream in enumerate(streams):
            num_over = 0
            while num_over < sent[owner]:
                response = stream.receive()
                num_over += is_final(response)
                assert f"client{1 - owner}" not in str(response)
                assert (
                    response.infer_response.id == "r"
                    or response.error_message
                    or (int(response.infer_response.id[1:]) < sent[owner])
                )
