"""Gateways behind a real Envoy, with the configuration of examples/envoy."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb

from tests.controller.gateway.gateway_process import gateway_process
from tests.envoy import EXAMPLE, Envoy, Ports, envoy, several, validated
from tests.gateway_fixtures import (
    GatewayThread,
    is_last,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.http_client import ask, sent
from tests.programs import join
from tests.triton_client import Response, Stream, streaming, tensor
from tests.triton_client import text_of as text_of_all
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.triton import TritonServer

STREAM = f"/{SERVICE.full_name}/ModelStreamInfer"
METRICS = (
    "/metrics",
    "/%6Detrics",
    "/%6detric%73",
    "/metrics/",
    "//metrics",
    "/metrics?a=b",
    "/metrics%3F",
    "/metrics;a",
    "/%2Fmetrics",
    "/./metrics",
    "/v1/../metrics",
    "/v1/%2E%2E/metrics",
    "/v1/..%2Fmetrics",
    "/v1/..%5Cmetrics",
    "/v1/..\\metrics",
    "/v2/health/../../metrics",
    "/v1//..//metrics",
)
GENERATE = "/v2/models/qwen_mtp/generate_stream"


def gateway_at(triton: str, ports: Ports, **settings: Any) -> Any:
    """A gateway at its ports, for a with statement."""
    settings = {"failover_wait_s": 60.0, **settings}  # a busy machine takes its time
    return running_gateway(triton, port=ports.grpc, http_port=ports.http, **settings)


def num_running(thread: GatewayThread) -> int:
    """Requests in flight."""
    return sum(v["num_running"] for v in thread.gateway.statistics()["variants"].values())


class Fleet:
    """Three gateways behind one Envoy."""

    def __init__(self, stack: ExitStack, folder: Path, triton: str) -> None:
        """All are there as long as `stack` is open."""
        ports = several(3)
        self.gateways: list[GatewayThread] = [
            stack.enter_context(gateway_at(triton, each)) for each in ports
        ]
        self.envoy = stack.enter_context(envoy(folder, ports))
        self.envoy.wait_healthy(*ports)

    def num_running(self) -> list[int]:
        """Requests in flight of each gateway."""
        return [num_running(each) for each in self.gateways]


@pytest.fixture(scope="module")
def fleet(doubles: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Gateways before the Triton that all tests leave alive."""
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path_factory.mktemp("envoy"), doubles.grpc_url)


def test_envoy_takes_the_example() -> None:
    """No field of it is unknown or deprecated."""
    assert "deprecated" not in validated(EXAMPLE).lower()


def test_each_stream_of_a_connection_has_a_gateway_of_its_own(fleet: Fleet) -> None:
    """All gateways have some of twenty streams on one connection."""
    request = script_request(tokens=10**6, delay_s=0.05).SerializeToString()
    with grpc.insecure_channel(fleet.envoy.grpc) as channel:
        is_over = threading.Event()

        def requests() -> Iterator[bytes]:
            yield request
            is_over.wait()  # the client's side stays open

        calls = []
        for _ in range(20):  # one after the other: Envoy counts a stream once it has a connection
            calls.append(call := channel.stream_stream(STREAM)(requests(), timeout=60))
            assert text_of(pb.ModelStreamInferResponse.FromString(next(call))) == "w0"
        assert min(fleet.num_running()) > 0
        for call in calls:
            call.cancel()
        is_over.set()
    wait_until(lambda: fleet.num_running() == [0, 0, 0])


def leave_grpc(fleet: Fleet, script: dict[str, Any]) -> None:
    """Take one token and leave."""
    with raw_stream(fleet.envoy.grpc) as stream:
        stream.send(script_request(**script))
        assert text_of(stream.receive()) == "w0"


def leave_http(fleet: Fleet, script: dict[str, Any]) -> None:
    """Take one event and leave."""
    body = {"text_input": json.dumps(script), "streaming": True}
    with sent(fleet.envoy.http, "POST", GENERATE, body) as response:
        assert response.getheader("content-type", "").startswith("text/event-stream")
        assert json.loads(response.readline().removeprefix(b"data: "))["text_output"] == "w0"


@pytest.mark.parametrize("leave", [leave_grpc, leave_http])
def test_tokens_pass_at_once_and_so_does_leaving(
    fleet: Fleet, doubles: TritonServer, leave: Callable[[Fleet, dict[str, Any]], None]
) -> None:
    """The first token is here before there is a second; who leaves then ends the request."""
    name = f"behind-envoy-{leave.__name__}"
    leave(fleet, {"tokens": 2, "hang_at": 1, "name": name})
    wait_until((doubles.log.parent / "notes" / f"cancelled-{name}").exists)
    wait_until(lambda: fleet.num_running() == [0, 0, 0])


def test_metrics_are_of_one_gateway_and_not_of_any(fleet: Fleet) -> None:
    """However the path is written; what clients use passes."""
    for path in METRICS:
        reply = ask(fleet.envoy.http, "GET", path)
        assert reply.status == 404, path
        assert b"trt_mtp_" not in reply.body, path
    assert ask(fleet.envoy.http, "GET", "/v2/health/ready").status == 200
    chat = {"model": "qwen_mtp", "messages": [{"role": "user", "content": '{"tokens": 3}'}]}
    reply = ask(fleet.envoy.http, "POST", "/v1/chat/completions", chat)
    assert reply.json()["choices"][0]["message"]["content"] == "w2"


def test_a_server_dies_and_no_token_changes(doubles: TritonServer, tmp_path: Path) -> None:
    """Fifty requests on one stream, a few on others, three gateways; one of two servers dies."""
    with ExitStack() as stack:
        mortal = stack.enter_context(triton_of_doubles(tmp_path))
        fleet = Fleet(stack, tmp_path, f"{mortal.grpc_url},{doubles.grpc_url}")
        streams = {
            stack.enter_context(streaming(fleet.envoy.grpc)): num for num in (50, 4, 4, 4, 4)
        }
        for stream, num in streams.items():
            for index in range(num):
                script = {"tokens": 20, "delay_s": 0.05, "word": f"r{index}-"}
                text = json.dumps(script)
                stream.send("qwen_mtp", request_id=str(index), text_input=text, streaming=True)
        first = {stream: stream.receive() for stream in streams}
        os.kill(mortal.pid, signal.SIGKILL)
        for stream, num in streams.items():
            assert texts_of(stream, first[stream], num) == {
                str(index): "".join(f"r{index}-{token}" for token in range(20))
                for index in range(num)
            }
        assert sum(map(num_failed_over, fleet.gateways)) > 0


def num_failed_over(thread: GatewayThread) -> int:
    """Answers that went on with another variant."""
    tasks = thread.gateway.statistics()["tasks"].values()
    return sum(task["num_failed_over"] for task in tasks)


def texts_of(stream: Stream, first: Response, num: int) -> dict[str, str]:
    """The whole text of each of `num` answers; fails on an error."""
    answers: dict[str, list[Response]] = {first.request_id: [first]}
    while sum(responses[-1].is_final for responses in answers.values()) < num:
        response = stream.receive()
        assert not response.error
        answers.setdefault(response.request_id, []).append(response)
    return {name: text_of_all(responses) for name, responses in answers.items()}


class Client(threading.Thread):
    """Asks the same again and again until it is told to stop, or gets a wrong answer."""

    def __init__(self, ask_once: Callable[[], str]) -> None:
        super().__init__()
        self._ask, self._is_over = ask_once, threading.Event()
        self.num_answers, self.wrong = 0, ""

    def run(self) -> None:
        while not (self._is_over.is_set() or self.wrong):
            try:
                text = self._ask()
            except Exception as error:
                text = repr(error)
            self.wrong = "" if text == "w0w1w2" else text
            self.num_answers += 1

    def stop(self) -> None:
        self._is_over.set()
        join(self)


def clients_of(stack: ExitStack, server: Envoy) -> list[Client]:
    """One for each way to ask: a new stream each time, a single answer, server-sent events."""
    channel = stack.enter_context(grpc.insecure_channel(server.grpc))
    asked = stack.enter_context(
        contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc))
    )
    script: dict[str, Any] = {"tokens": 3, "delay_s": 0.005}
    request = script_request(**script).SerializeToString()
    body = {"text_input": json.dumps(script), "streaming": True}

    def stream() -> str:
        call = channel.stream_stream(STREAM)(iter([request]), timeout=60)
        responses = [pb.ModelStreamInferResponse.FromString(each) for each in call]
        assert is_last(responses[-1])
        return "".join(each.error_message or text_of(each) for each in responses)

    def single() -> str:
        result = asked.infer(
            "qwen_mtp", [tensor("text_input", json.dumps(script | {"word": "w0w1w"}))]
        )
        return str(result.as_numpy("text_output")[0].decode())

    def events() -> str:
        reply = ask(server.http, "POST", GENERATE, body)
        return "".join(event["text_output"] for event in reply.events())

    return [Client(each) for each in (stream, stream, single, events, events)]


def has_answered(thread: GatewayThread) -> bool:
    """Did some requests come to this gateway?"""
    return len(thread.policy.seen) > 5


def test_gateways_are_replaced_under_load(doubles: TritonServer, tmp_path: Path) -> None:
    """One after the other, each when its successor is there: no client sees an error.

    An answer that is under way has its time.
    """
    old, new = several(3), several(3)
    with ExitStack() as stack:
        leaving = [ExitStack() for _ in old]
        for gateway, ports in zip(leaving, old, strict=True):
            stack.enter_context(gateway)
            gateway.enter_context(gateway_at(doubles.grpc_url, ports))
        server = stack.enter_context(envoy(tmp_path, [*old, *new]))
        server.wait_healthy(*old)
        clients = clients_of(stack, server)
        for client in clients:
            client.start()
            stack.callback(client.stop)
        present = list(old)
        for gateway, ports in zip(leaving, new, strict=True):
            successor = stack.enter_context(gateway_at(doubles.grpc_url, ports))
            present.append(ports)
            server.wait_healthy(*present)
            gateway.close()
            present.pop(0)
            server.wait_healthy(*present)
            wait_until(partial(has_answered, successor))
        for client in clients:
            client.stop()
    assert [client.wrong for client in clients] == [""] * len(clients)
    assert min(client.num_answers for client in clients) > 3


def test_what_a_killed_gateway_has_not_begun_to_answer_is_asked_elsewhere(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """Streams without a token yet, and single answers."""
    ports = several(2)
    doors = ("--port", str(ports[0].grpc), "--http-port", str(ports[0].http))
    with (
        gateway_process(tmp_path / "log", "--triton", doubles.grpc_url, *doors) as killed,
        gateway_at(doubles.grpc_url, ports[1]),
        envoy(tmp_path, ports) as server,
        ThreadPoolExecutor() as pool,
    ):
        server.wait_healthy(*ports)
        asked, padding = [], "x" * 900_000  # Envoy keeps a mebibyte of a request
        for index, ask_once in enumerate([single_answer, whole_stream] * 4):
            script = {"tokens": 1, "delay_s": 0.7, "name": f"envoy-{index}", "padding": padding}
            asked.append(pool.submit(ask_once, server, script))
        notes = doubles.log.parent / "notes"
        wait_until(lambda: all((notes / f"begun-envoy-{i}").exists() for i in range(8)))
        killed.end(signal.SIGKILL)
        assert [each.result() for each in asked] == ["w0"] * 8


def whole_stream(server: Envoy, script: dict[str, Any]) -> str:
    """The text of one request on a stream of its own."""
    with raw_stream(server.grpc) as stream:
        stream.send(script_request(**script))
        return text_of(stream.receive())


def single_answer(server: Envoy, script: dict[str, Any]) -> str:
    """A single answer over HTTP."""
    body = {"text_input": json.dumps(script)}
    reply = ask(server.http, "POST", "/v2/models/qwen_mtp/generate", body)
    return str(reply.json()["text_output"])
