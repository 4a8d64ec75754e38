"""What the gateway says of models, what it refuses, and how its process behaves."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.conftest import CliResult
from tests.controller.gateway.gateway_process import gateway_process
from tests.gateway_fixtures import (
    raw_stream,
    running_gateway,
    script_request,
    wait_until,
)
from trt_mtp.controller.decision_log import read_log
from trt_mtp.controller.gateway.grpc_server import HEALTH, MANAGEMENT
from trt_mtp.controller.gateway.public_model import PublicModel, add_statistics
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="module")
def url(doubles: TritonServer) -> Iterator[str]:
    """Where a gateway listens."""
    with running_gateway(doubles.grpc_url) as thread:
        yield thread.gateway.address


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A stock client of it."""
    found = grpcclient.InferenceServerClient(url)
    yield found
    found.close()


def test_the_server_is_alive_ready_and_described(client: Any) -> None:
    """Questions about the server are Triton's to answer."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "triton"


def test_the_public_model_is_a_model(client: Any) -> None:
    """It is ready, and has its variants' tensors under its own name."""
    assert client.is_model_ready("qwen_mtp")
    metadata = client.get_model_metadata("qwen_mtp")
    assert metadata.name == "qwen_mtp"
    assert "text_input" in [tensor.name for tensor in metadata.inputs]
    config = client.get_model_config("qwen_mtp").config
    assert config.name == "qwen_mtp"
    assert config.model_transaction_policy.decoupled
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "draft_lengths": "0,1,3"
    }


def test_other_models_are_described_by_triton(client: Any) -> None:
    """A variant or any other model is answered for as Triton does."""
    assert client.is_model_ready("other")
    assert not client.is_model_ready("nowhere")
    assert client.get_model_config("qwen_mtp_k3").config.name == "qwen_mtp_k3"
    assert client.get_model_metadata("other").name == "other"
    with pytest.raises(InferenceServerException, match="nowhere"):
        client.get_model_metadata("nowhere")


def test_the_index_names_the_public_model_first(client: Any) -> None:
    """Where Triton keeps its index to itself, the gateway lists what it knows."""
    index = client.get_model_repository_index()
    assert [model.name for model in index.models] == [
        "qwen_mtp",
        "qwen_mtp_k0",
        "qwen_mtp_k1",
        "qwen_mtp_k3",
    ]
    assert {model.state for model in index.models} == {"READY"}


def test_statistics_of_the_public_model_are_its_variants_together(client: Any, url: str) -> None:
    """Every inference counts once, whichever variant ran it."""

    def count(name: str) -> int:
        [found] = [s for s in client.get_inference_statistics(name).model_stats if s.name == name]
        return int(found.inference_count)

    with raw_stream(url) as stream:
        for length in (0, 1, 3):
            stream.send(script_request(tokens=1, parameters={"draft_length": length}))
            stream.receive()
    # Triton counts an inference a moment after its last response
    wait_until(lambda: all(count(f"qwen_mtp_k{length}") >= 1 for length in (0, 1, 3)))
    assert count("qwen_mtp") == sum(count(f"qwen_mtp_k{length}") for length in (0, 1, 3))
    names = [found.name for found in client.get_inference_statistics().model_stats]
    assert names[0] == "qwen_mtp"
    assert {"qwen_mtp_k3", "other"} <= set(names)
    with pytest.raises(InferenceServerException, match="nowhere"):
        client.get_inference_statistics("nowhere")


def test_statistics_add_up_by_batch_size_and_response() -> None:
    """Counts and times add up with their like; the time of the last inference is the latest."""
    total, part = pb.ModelStatistics(), pb.ModelStatistics(last_inference=7, inference_count=2)
    part.inference_stats.success.count = 3
    part.inference_stats.success.ns = 10
    part.batch_stats.add(batch_size=4).compute_infer.count = 1
    part.response_stats["0"].success.ns = 5
    for _ in range(2):
        add_statistics(total, part)
    assert (total.last_inference, total.inference_count) == (7, 4)
    assert (total.inference_stats.success.count, total.inference_stats.success.ns) == (6, 20)
    assert [(b.batch_size, b.compute_infer.count) for b in total.batch_stats] == [(4, 2)]
    assert total.response_stats["0"].success.ns == 10


def test_statistics_of_many_servers_hold_up_nobody() -> None:
    """The event loop has a turn for others after each call and answer, however many ask."""
    told = pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name="m", inference_count=1)])

    class Server:
        async def call(self, *_: object) -> bytes:
            return bytes(told.SerializeToString())

    async def scenario() -> None:
        servers = {str(number): Server() for number in range(50)}
        pool: Any = SimpleNamespace(public_name="public", variants={}, backends=servers)
        answer = PublicModel(pool).answers()["ModelStatistics"]
        asking = asyncio.gather(answer(b"", None), answer(b"", None))
        num_turns = 0
        while not asking.done():
            await asyncio.sleep(0)
            num_turns += 1
        for raw in await asking:
            assert raw is not None
            [_, found] = pb.ModelStatisticsResponse.FromString(raw).model_stats
            assert (found.name, found.inference_count) == ("m", 50)
        assert num_turns >= 2 * 2 * 50

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.timeout(60)
def test_statistics_of_a_server_that_lies_add_up_in_time() -> None:
    """Numbers beyond Triton's and thousands of batch sizes stop nobody."""
    total, part = pb.ModelStatistics(), pb.ModelStatistics(inference_count=2**64 - 1)
    for size in range(50_000):
        part.batch_stats.add(batch_size=size)
    for _ in range(2):
        add_statistics(total, part)
    assert total.inference_count == 2**64 - 1
    assert len(total.batch_stats) == 50_000


@pytest.mark.parametrize("method", sorted(MANAGEMENT))
def test_management_is_refused(client: Any, url: str, method: str) -> None:
    """What changes or reveals the server is not for the public port, whatever it says."""
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        with pytest.raises(grpc.RpcError, match="is a management call") as refused:
            call(b"\xff\xff", timeout=60)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "method",
    [
        method.name
        for method in SERVICE.methods  # but those whose requests have nothing in them to be read
        if method.name not in {*MANAGEMENT, *HEALTH, "ModelStreamInfer"}
    ],
)
def test_garbage_in_any_call_is_an_error_and_no_crash(client: Any, url: str, method: str) -> None:
    """Bytes that are no message get a status; the gateway answers the next call."""
    with grpc.insecure_channel(url) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE.full_name}/{method}")(b"\x0a\xff", timeout=60)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    assert client.is_server_live()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_until_a_signal(
    doubles: TritonServer,
    tmp_path: Path,
    number: signal.Signals,
    request: pytest.FixtureRequest,
) -> None:
    """It says where it is, routes by the real policy, keeps what it learned, and exits with 0.

    It is started as by `nohup`, and its terminal is closed.
    """
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, hangup))
    state = tmp_path / "state.json"
    options = ("--triton", doubles.grpc_url, "--port", "0", "--state", str(state))
    with gateway_process(tmp_path / "log", *options) as process:
        assert [variant["draft_length"] for variant in process.ready["variants"]] == [0, 1, 3]
        process.process.send_signal(signal.SIGHUP)
        with raw_stream(process.ready["gateway"]) as stream:
            stream.send(script_request(tokens=2, parameters={"task": "coding", "draft_length": 3}))
            variant = stream.receive().infer_response.parameters["variant"].string_param
            stream.receive()
        assert (process.end(number), variant) == (0, "k3"), process.log
    counters = json.loads(process.log.strip().splitlines()[-1].partition("counters ")[2])
    assert counters["tasks"]["coding"]["chosen"] == {"3": 1}
    assert counters["tasks"]["coding"]["num_steps"] == 2
    learned = json.loads(state.read_text())
    assert (learned["schema_version"], learned["learned_on"]) == (1, ["f0"])
    with gateway_process(tmp_path / "log", *options) as again:
        assert again.end(number) == 0
    assert "1 answers learned before" in again.log
    state.write_text(json.dumps({**learned, "learned_on": ["another checkpoint"]}))
    with gateway_process(tmp_path / "log", *options) as foreign:
        assert foreign.end(number) == 0
    assert "was learned on variants another checkpoint, and hosted are f0; moved to" in foreign.log
    assert "another checkpoint" in (tmp_path / "state.json.aside-1").read_text()


def test_a_gateway_logs_prompts(
    doubles: TritonServer, tmp_path: Path, cli: Callable[..., CliResult]
) -> None:
    """The log has the prompt as asked, and only if there is one."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--replica", "a")
    log = ("--decision-log", str(tmp_path / "log"), "--log-prompts")
    with gateway_process(tmp_path / "stderr", *options, *log) as process:
        with raw_stream(process.ready["gateway"]) as stream:
            stream.send(script_request(tokens=2, parameters={"draft_length": 3}))
            stream.receive()
            stream.receive()
        assert process.end() == 0
    [record] = read_log(tmp_path / "log")
    assert record.prompt == '{"tokens": 2}'
    assert record.outcome.seed == 2**63 + 1  # as the variant told it
    for wrong in (("--log-prompts",), ("--replica", "")):
        assert cli("gateway", "--triton", doubles.grpc_url, *wrong).code == 2


def test_wrong_starts_end_in_a_sentence(
    doubles: TritonServer, tmp_path: Path, cli: Callable[..., CliResult]
) -> None:
    """A port in use, no Triton, no variants, a wrong file: exit code and sentence for each."""
    port = doubles.grpc_url.partition(":")[2]
    profile = tmp_path / "profile.json"
    profile.write_text('{"schema_version": 1, "prefil_tokens_per_s": 3}')
    common = ("gateway", "--ready-timeout-s", "0.2", "--triton")
    for options, code, message in (
        ((doubles.grpc_url, "--port", port), 2, f"can't listen on 127.0.0.1:{port}"),
        (("127.0.0.1:1", "--port", "0"), 1, "no Triton answers at 127.0.0.1:1"),
        ((doubles.grpc_url, "--port", "0", "--model", "lama"), 1, "has no model lama_k"),
        ((doubles.grpc_url, "--port", "0", "--profile", str(profile)), 2, "did you mean prefill"),
    ):
        result = cli(*common, *options)
        assert result.code == code
        assert message in result.err
        assert "Traceback" not in result.err
