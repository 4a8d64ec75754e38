"""Clients that leave: their variants are told, nobody else notices, and no stream is cancelled."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_fixtures import (
    GatewayThread,
    RawStream,
    is_last,
    parameter,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
    watch_until_back,
)
from tests.http_client import sent
from trt_mtp.controller.gateway.servers import winding_down
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.serve import contract
from trt_mtp.serve.contract import CANCEL, CANCELLED_FLAG
from trt_mtp.serve.kserve import bool_output, cancel_request
from trt_mtp.serve.processes import is_alive
from trt_mtp.serve.triton import TritonServer


@pytest.fixture
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """A gateway with HTTP."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def notes(server: TritonServer, name: str) -> list[str]:
    """What became of the request of this name: cancelled by another one, dropped, or neither."""
    found = (server.log.parent / "notes").glob(f"*ed-{name}")
    return sorted(path.name for path in found)


def num_running(gateway: GatewayThread) -> int:
    """Slots that are taken."""
    variants = gateway.gateway.statistics()["variants"].values()
    return sum(variant["num_running"] for variant in variants)


@contextlib.contextmanager
def begun(gateway: GatewayThread, **script: Any) -> Iterator[RawStream]:
    """A stream on which the first token of an answer has come."""
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=10**6, delay_s=0.01, **script))
        assert text_of(stream.receive()) == "w0"
        yield stream


def leave_grpc(gateway: GatewayThread, name: str) -> None:
    """Begin an answer and cancel the call."""
    with begun(gateway, name=name):
        pass


def leave_http(gateway: GatewayThread, name: str) -> None:
    """Begin an answer and close the connection."""
    script = f'{{"tokens": 1000000, "delay_s": 0.01, "name": "{name}"}}'
    body = {"text_input": script, "streaming": True}
    path = "/v2/models/qwen_mtp/generate_stream"
    with sent(str(gateway.gateway.http_address), "POST", path, body) as response:
        assert response.readline().startswith(b"data: ")


@pytest.mark.parametrize("leave", [leave_grpc, leave_http])
def test_who_leaves_cancels_the_request_and_no_stream(
    gateway: GatewayThread, doubles: TritonServer, leave: Callable[[GatewayThread, str], None]
) -> None:
    """The variant ends the request, the slot is free, and others' streams serve on."""
    with begun(gateway, name="stays") as staying:
        for index in range(5):
            leave(gateway, f"{leave.__name__}-{index}")
        wait_until(lambda: num_running(gateway) == 1)
        assert parameter(staying.receive(), "variant") == "k3"
    wait_until(lambda: len(notes(doubles, f"{leave.__name__}-*")) == 5)
    assert all(note.startswith("cancelled") for note in notes(doubles, f"{leave.__name__}-*"))


def test_the_stream_serves_the_next_request(gateway: GatewayThread) -> None:
    """Its tokens are the next request's own, whatever was left in the stream."""
    for index in range(20):
        leave_grpc(gateway, f"then-{index}")
        with raw_stream(gateway.gateway.address) as stream:
            stream.send(script_request(tokens=3, word=f"mine{index}-"))
            assert [text_of(stream.receive()) for _ in range(3)] == [
                f"mine{index}-{token}" for token in range(3)
            ]


def test_a_variant_that_stays_silent_is_dropped_with_its_connection(
    gateway: GatewayThread, doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others on the connection get the rest of their answers first; new requests have another."""
    monkeypatch.setattr(winding_down, "SILENT_S", 0.5)
    with begun(gateway, name="other") as other:
        with raw_stream(gateway.gateway.address) as leaving:
            hint = {"draft_length": 1}
            leaving.send(script_request(hang_at=1, deaf=True, name="deaf", parameters=hint))
            assert text_of(leaving.receive()) == "w0"
        wait_until(lambda: num_running(gateway) == 1)
        dropped = b'trt_mtp_gateway_answers_abandoned_total{rest="dropped",variant="k1"} 1.0'
        assert dropped in gateway.gateway.render_metrics()
        with raw_stream(gateway.gateway.address) as stream:
            stream.send(script_request(tokens=1))
            assert text_of(stream.receive()) == "w0"
        assert notes(doubles, "deaf") == []
        assert text_of(other.receive()).startswith("w")
    wait_until(lambda: notes(doubles, "deaf") == ["dropped-deaf"])
    assert notes(doubles, "other") == ["cancelled-other"]


def test_an_answer_of_a_variant_that_knows_no_cancelling_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot is taken until then, and the stream is used again."""
    without = tuple(spec for spec in contract.INPUTS if spec.name != CANCEL)
    monkeypatch.setattr("tests.gateway_fixtures.INPUTS", without)
    with (
        triton_of_doubles(tmp_path) as server,
        running_gateway(server.grpc_url) as thread,
    ):
        with raw_stream(thread.gateway.address) as leaving:
            leaving.send(script_request(tokens=150, delay_s=0.02, name="old"))
            assert text_of(leaving.receive()) == "w0"
        wait_until(lambda: bool(thread.outcomes))
        assert num_running(thread) == 1
        wait_until(lambda: num_running(thread) == 0)
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request(tokens=1, word="next"))
            assert text_of(stream.receive()) == "next0"
        assert notes(server, "old") == []


def test_requests_to_other_models_are_read_to_their_end(
    gateway: GatewayThread, doubles: TritonServer
) -> None:
    """What passes by name isn't cancelled either."""
    with raw_stream(gateway.gateway.address) as leaving:
        leaving.send(script_request("other", tokens=30, delay_s=0.02, name="by-name"))
        assert text_of(leaving.receive()) == "w0"
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request("other", tokens=60, delay_s=0.02))
        texts = [text_of(stream.receive()) for _ in range(60)]
    assert texts[-1] == "w59"
    assert notes(doubles, "by-name") == []


def test_nobody_cancels_what_is_not_theirs(gateway: GatewayThread) -> None:
    """The public model takes no such request, and a variant's ids can't be known from outside."""
    with begun(gateway, request_id="mine") as stream:
        decision = gateway.policy.seen and f"d{len(gateway.policy.seen)}"
        with raw_stream(gateway.gateway.address) as foreign:
            foreign.send(cancel_request("qwen_mtp", "c", "mine"))
            assert "is for variants" in foreign.receive().error_message
            comparing = script_request(request_id="m")
            comparing.inputs.add(name="return_margin", datatype="BOOL", shape=[1])
            comparing.raw_input_contents.append(b"\x01")
            foreign.send(comparing)
            assert "return_margin is for variants" in foreign.receive().error_message
            for guess in ("mine", f"mine/{decision}", str(decision), ""):
                foreign.send(cancel_request("qwen_mtp_k3", "c", guess))
                told = foreign.receive()
                assert not bool_output(told.infer_response, CANCELLED_FLAG)
        assert text_of(stream.receive()).startswith("w")


def test_what_leaves_in_the_first_moment_is_ended_too(
    gateway: GatewayThread, doubles: TritonServer
) -> None:
    """A cancellation that overtakes its request is made again."""
    for index in range(30):
        with raw_stream(gateway.gateway.address) as leaving:
            leaving.send(script_request(tokens=10**6, delay_s=0.01, name=f"early-{index}"))
    wait_until(lambda: num_running(gateway) == 0)
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"
    assert not [note for note in notes(doubles, "early-*") if note.startswith("dropped")]


def test_bystanders_wait_while_the_only_server_is_started_again(tmp_path: Path) -> None:
    """What is in flight goes on, what comes meanwhile is answered."""
    with (
        triton_of_doubles(tmp_path) as server,
        running_gateway(server.grpc_url, Policy(Profile()), failover_wait_s=60.0) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(request_id="flies", tokens=50, delay_s=0.02))
        assert text_of(stream.receive()) == "w0"
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not thread.gateway.pool.is_ready)
        stream.send(script_request(request_id="comes", tokens=2))
        wait_until(lambda: not is_alive(pid))  # its connections end before it does
        watch_until_back(server, pid)
        answers: dict[str, list[str]] = {"flies": ["w0"], "comes": []}
        ended = set[str]()
        while len(ended) < 2:
            response = stream.receive()
            assert not response.error_message
            name = response.infer_response.id
            answers[name].append(text_of(response))
            if is_last(response):
                ended.add(name)
    assert answers == {"flies": [f"w{i}" for i in range(50)], "comes": ["w0", "w1"]}


def test_a_refusal_says_how_long_was_waited(tmp_path: Path) -> None:
    """Nothing is waited for without an end."""
    with (
        triton_of_doubles(tmp_path) as server,
        running_gateway(server.grpc_url, Policy(Profile()), failover_wait_s=0.5) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not thread.gateway.pool.is_ready)
        stream.send(script_request(tokens=1))
        message = stream.receive().error_message
        assert message.startswith("no variant can take this request: k0 is not healthy")
        assert "s of waiting for one (--failover-wait-s)" in message
