"""The picker: Envoy sends requests to Triton itself, with the configuration of examples/envoy."""

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.conftest import CliResult
from tests.controller.gateway.gateway_process import gateway_process
from tests.envoy import HOST, PICKER, Envoy, envoy, several, validated
from tests.gateway_fixtures import (
    GatewayThread,
    running_gateway,
    script_request,
    triton_of_doubles,
    wait_until,
)
from tests.http_client import ask
from tests.programs import TIMEOUT_S
from tests.triton_client import tensor
from trt_mtp.controller.gateway.ext_proc.doors import UNARY_PATH, failed_status
from trt_mtp.serve.triton import TritonServer

GENERATE = "/v2/models/qwen_mtp/generate"
DESTINATION = "x-gateway-destination-endpoint"


class Front(NamedTuple):
    """A gateway with its picker, and Envoy before both."""

    gateway: GatewayThread
    envoy: Envoy

    def generate(self, headers: dict[str, str] | None = None, **script: Any) -> Any:
        """What Envoy answers to a generate request."""
        body = {"text_input": json.dumps(script)}
        return ask(self.envoy.http, "POST", GENERATE, body, headers=headers or {})

    def num_picked(self) -> int:
        """Requests that Envoy sent to Triton."""
        path = "/stats?format=json&filter=cluster.triton.upstream_rq_total"
        reply = ask(f"{HOST}:{self.envoy.admin_port}", "GET", path)
        return int(reply.json()["stats"][0]["value"])

    def num_running(self) -> int:
        """Places that are taken."""
        variants = self.gateway.gateway.statistics()["variants"].values()
        return sum(variant["num_running"] for variant in variants)


@contextlib.contextmanager
def front(triton: str, folder: Path, **settings: Any) -> Iterator[Front]:
    """A Front before servers."""
    (ports,) = several(1)
    doors = {"port": ports.grpc, "http_port": ports.http, "ext_proc_port": 0}
    with running_gateway(triton, **doors, **settings) as thread:
        picker = thread.gateway.ext_proc_port
        assert picker is not None
        with envoy(folder, [ports], PICKER.read_text(), pickers=[picker]) as server:
            wait_until(lambda: server.healthy() >= {(HOST, port) for port in (*ports, picker)})
            yield Front(thread, server)


@pytest.fixture(scope="module")
def fleet(doubles: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One for all tests that leave it as it was."""
    with front(doubles.grpc_url, tmp_path_factory.mktemp("picker")) as found:
        yield found


@pytest.fixture
def client(fleet: Front) -> Iterator[Any]:
    """A stock client of the gRPC port."""
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(fleet.envoy.grpc)) as found:
        yield found


def infer(client: Any, **script: Any) -> Any:
    """A single answer."""
    return client.infer("qwen_mtp", [tensor("text_input", json.dumps(script))])


def test_envoy_takes_the_example() -> None:
    """No field of it is unknown or deprecated."""
    assert "deprecated" not in validated(PICKER).lower()


def test_answers_are_a_gateways(fleet: Front, client: Any) -> None:
    """Over gRPC and both forms of HTTP, from Triton itself; what was accepted is learned."""
    before, seen = fleet.num_picked(), len(fleet.gateway.policy.outcomes)
    direct = tritonclient.grpc.InferenceServerClient(fleet.gateway.gateway.address)
    answer, wanted = infer(client, tokens=3), infer(direct, tokens=3)
    direct.close()
    assert answer.as_numpy("text_output")[0] == wanted.as_numpy("text_output")[0] == b"w2"
    names = [[output.name for output in each.get_response().outputs] for each in (answer, wanted)]
    assert names[0] == names[1]
    assert answer.get_response().model_name == "qwen_mtp"
    assert answer.get_response().parameters["variant"].string_param == "k3"

    reply = fleet.generate(tokens=3)
    assert reply.headers["content-type"] == "application/json"
    expected = ask(
        str(fleet.gateway.gateway.http_address),
        "POST",
        GENERATE,
        {"text_input": json.dumps({"tokens": 3})},
    )
    changing = {"decision_id", "seed"}
    assert {k: v for k, v in reply.json().items() if k not in changing} == {
        k: v for k, v in expected.json().items() if k not in changing
    }

    with contextlib.closing(tritonclient.http.InferenceServerClient(fleet.envoy.http)) as asking:
        text = tritonclient.http.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([b'{"tokens": 2}'], object))
        assert asking.infer("qwen_mtp", [text]).as_numpy("text_output")[0] == b"w1"

    assert fleet.num_picked() == before + 3
    wait_until(lambda: len(fleet.gateway.policy.outcomes) >= seen + 5)  # learned together
    outcomes = fleet.gateway.policy.outcomes[seen:]
    assert [outcome.num_accepted_draft_tokens for _, outcome in outcomes] == [3, 3, 3, 3, 3]
    assert fleet.num_running() == 0


def test_what_is_no_single_answer_is_the_gateways(fleet: Front, client: Any) -> None:
    """Streams, all else that they answer, and web pages, which only they know."""
    before = fleet.num_picked()
    body = {"text_input": '{"tokens": 2}', "streaming": True}
    events = list(ask(fleet.envoy.http, "POST", GENERATE + "_stream", body).events())
    assert "".join(event["text_output"] for event in events) == "w0w1"
    assert client.is_model_ready("qwen_mtp")
    assert ask(fleet.envoy.http, "GET", "/v2/health/ready").status == 200
    assert ask(fleet.envoy.http, "POST", GENERATE, body).status == 400  # streaming
    assert fleet.generate({"Origin": "https://example.com"}).status == 403
    assert fleet.num_picked() == before


def test_nobody_but_the_picker_says_where_a_request_goes(fleet: Front) -> None:
    """The header of a client is taken away, on both ports."""
    before = fleet.num_picked()
    hostile = {DESTINATION: "127.0.0.1:1"}
    assert fleet.generate(hostile, tokens=1).json()["text_output"] == "w0"
    assert fleet.num_picked() == before + 1
    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    assert ask(fleet.envoy.http, "POST", path, {}, headers=hostile).status == 404
    with grpc.insecure_channel(fleet.envoy.grpc) as channel:
        call = channel.stream_stream(path)(iter([]), metadata=[*hostile.items()], timeout=60)
        assert list(call) == []  # a gateway's stream without requests
    assert fleet.num_picked() == before + 1


@pytest.mark.parametrize(
    "hostile",
    [
        {"grpc-timeout": "1n"},
        {"grpc-timeout": "soon"},
        {"grpc-encoding": "none-such"},
        {"x-bin": "!"},
        {"x-long": "x" * 20_000},
        {"x-forwarded-proto": "\xff", "traceparent": "\xff"},
    ],
)
def test_headers_of_a_client_fail_no_variant(fleet: Front, hostile: dict[str, str]) -> None:
    """Triton gets none of them: three times what it ends a call for would eject the variant."""
    before = fleet.num_picked()
    answers = [fleet.generate(hostile, tokens=1).json() for _ in range(4)]
    assert {(each["text_output"], each["variant"]) for each in answers} == {("w0", "k3")}
    assert fleet.num_picked() == before + 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({":status": "200"}, None),
        ({":status": "200", "grpc-status": "8"}, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ({":status": "503"}, grpc.StatusCode.UNAVAILABLE),
        ({":status": "504"}, grpc.StatusCode.DEADLINE_EXCEEDED),  # the answer's own length
    ],
)
def test_what_envoy_says_of_a_server(
    headers: dict[str, str], status: grpc.StatusCode | None
) -> None:
    """Its own replies among them."""
    assert failed_status(headers) is status


def test_a_long_prompt_is_picked_too(fleet: Front, client: Any) -> None:
    """As long as a gateway takes it: Envoy keeps the whole request meanwhile."""
    before = fleet.num_picked()
    padding = "x" * 3_000_000
    assert infer(client, tokens=1, padding=padding).as_numpy("text_output")[0] == b"w0"
    assert fleet.generate(tokens=1, padding=padding).json()["text_output"] == "w0"
    assert fleet.num_picked() == before + 2
    reply = fleet.generate(tokens=1, padding="x" * 4_500_000)
    assert reply.status == 413
    assert "--max-message-mb" in reply.json()["error"]


def test_answers_are_bounded_by_what_envoy_keeps_of_a_request(fleet: Front, client: Any) -> None:
    """5 MiB, also as the JSON that they become; beyond that an error, and the place is free."""
    assert len(fleet.generate(tokens=1, times=5_200_000).json()["text_output"]) == 5_200_001
    for script in ({"times": 5_300_000}, {"word": "\1", "times": 1_000_000}):  # \u0001, six bytes
        assert fleet.generate(tokens=1, **script).status == 500
    with pytest.raises(InferenceServerException, match="UNKNOWN"):
        infer(client, tokens=1, times=5_300_000)
    wait_until(lambda: fleet.num_running() == 0)


def test_a_wrong_request_is_told_so(fleet: Front, client: Any) -> None:
    """In the form of its door, by the picker or by its variant."""
    reply = ask(fleet.envoy.http, "POST", GENERATE, {"text_input": 3})
    assert reply.status == 400
    assert reply.json()["error"] == "text_input has to be a text, not a number like that"
    reply = ask(fleet.envoy.http, "POST", GENERATE, {"input_ids": [1] * 600})
    assert (reply.status, "has 600 tokens" in reply.json()["error"]) == (400, True)
    prompt = [tensor("text_input", "{}")]
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
        client.infer("qwen_mtp", prompt, parameters={"draft_length": -1})
    assert fleet.num_running() == 0
    with grpc.insecure_channel(fleet.envoy.grpc) as channel:
        raw = script_request(tokens=1, streaming=False).SerializeToString()
        before = fleet.num_picked()
        assert channel.stream_unary(UNARY_PATH)(iter([raw, raw]), timeout=60)  # a gateway's word
        assert fleet.num_picked() == before


def test_a_client_that_leaves_frees_its_place(fleet: Front, doubles: TritonServer) -> None:
    """Envoy says so."""
    script = {"tokens": 10**6, "delay_s": 0.05, "name": "picked"}
    connection = http.client.HTTPConnection(fleet.envoy.http, timeout=TIMEOUT_S)
    connection.request("POST", GENERATE, json.dumps({"text_input": json.dumps(script)}))
    begun = doubles.log.parent / "notes" / "begun-picked"
    wait_until(begun.exists)
    assert fleet.num_running() == 1
    connection.close()
    wait_until(lambda: fleet.num_running() == 0)


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, TritonServer]]:
    """One before a server of its own, which has one place at each variant."""
    folder = tmp_path_factory.mktemp("mortal")
    with (
        triton_of_doubles(folder / "t", max_batch_size=1) as triton,
        front(triton.grpc_url, folder, failover_wait_s=60.0) as found,
    ):
        yield found, triton


def test_what_has_no_place_waits_at_a_gateway(mortal: tuple[Front, TritonServer]) -> None:
    """Its queue is the only one; all are answered."""
    fleet, _ = mortal
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(fleet.generate, tokens=3, delay_s=0.1) for _ in range(8)]
        assert {each.result().json()["text_output"] for each in asked} == {"w2"}
    assert 0 < fleet.num_picked() < 8


def test_an_answer_that_breaks_off_is_not_continued(mortal: tuple[Front, TritonServer]) -> None:
    """By its variant, or with its server; the client is told so, and the place is free."""
    fleet, triton = mortal
    reply = fleet.generate(tokens=3, error_at=1)
    assert (reply.status, reply.json()["error"]) == (500, "internal error: the engine broke")
    with ThreadPoolExecutor() as pool:
        begun = triton.log.parent / "notes" / "begun-last"
        asked = pool.submit(fleet.generate, tokens=10**6, delay_s=0.05, name="last")
        wait_until(begun.exists)
        os.kill(triton.pid, signal.SIGKILL)
        assert asked.result().status == 503
    assert "send the request again" in asked.result().json()["error"]
    assert fleet.num_running() == 0
    assert fleet.gateway.gateway.statistics()["tasks"]["qa"]["num_failed"] == 2


def test_a_picker_is_killed(doubles: TritonServer, tmp_path: Path) -> None:
    """What it placed fails; all else goes on, as Envoy asks the other one."""
    ports = several(2)
    with ExitStack() as stack:
        pickers = []
        for index, each in enumerate(ports):
            doors = ("--port", each.grpc, "--http-port", each.http, "--ext-proc-port", 0)
            arguments = ("--triton", doubles.grpc_url, *map(str, doors))
            log = tmp_path / f"log-{index}"
            pickers.append(stack.enter_context(gateway_process(log, *arguments)))
        places = [int(each.ready["ext_proc"].rpartition(":")[2]) for each in pickers]
        server = stack.enter_context(envoy(tmp_path, ports, PICKER.read_text(), pickers=places))
        wait_until(lambda: server.healthy() >= {(HOST, port) for port in places})
        pool = stack.enter_context(ThreadPoolExecutor(8))

        def asked(name: str, **script: Any) -> Any:
            body = {"text_input": json.dumps({"name": name, **script})}
            return pool.submit(ask, server.http, "POST", GENERATE, body)

        held = [asked(f"held-{index}", tokens=1, delay_s=1.5) for index in range(8)]
        notes = doubles.log.parent / "notes"
        wait_until(lambda: all((notes / f"begun-held-{index}").exists() for index in range(8)))
        pickers[0].end(signal.SIGKILL)
        after = [asked("after", tokens=1) for _ in range(40)]
        assert {each.result().status for each in after} == {200}
        statuses = [each.result().status for each in held]
        assert set(statuses) == {200, 500}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--workers", "2"), "--ext-proc-port doesn't go with --workers"),
        (("--tokens", "tenants.yaml"), "--ext-proc-port doesn't go with --tokens"),
        (("--triton", "localhost:8001"), "write the address, or dns:localhost:8001"),
    ],
)
def test_options_that_do_not_fit(
    cli: Callable[..., CliResult], options: tuple[str, ...], sentence: str
) -> None:
    """Each refused with what to do instead."""
    found = cli("gateway", "--triton", "127.0.0.1:1", "--ext-proc-port", "0", *options)
    assert found.code == 2
    assert sentence in " ".join(found.err.split())
