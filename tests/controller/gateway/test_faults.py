"""Clients that leave, servers that die, and what is too much or no request at all."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc

from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.triton_client import leaving, tensor
from trt_mtp.controller.gateway import grpc_stream
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway for the tests that leave it running."""
    with running_gateway(doubles.grpc_url) as thread:
        yield thread


@pytest.fixture
def url(gateway: GatewayThread) -> str:
    """Where the gateway listens."""
    return gateway.gateway.address


def test_cancelling_reaches_the_variant(gateway: GatewayThread, doubles: TritonServer) -> None:
    """A client that leaves frees its slot at once, and the policy is told."""
    notes = doubles.log.parent / "notes"
    before = len(gateway.outcomes)
    with leaving(gateway.gateway.address) as stream:
        script = '{"tokens": 2000, "delay_s": 0.02, "name": "gone"}'
        stream.send("qwen_mtp", text_input=script, streaming=True)
        stream.receive()
        assert gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 1
    wait_until((notes / "cancelled-gone").exists)
    wait_until(lambda: len(gateway.outcomes) > before)
    assert gateway.outcomes[-1][1].finish_reason == "cancelled"
    wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)


def test_a_deadline_reaches_the_variant(gateway: GatewayThread, doubles: TritonServer) -> None:
    """A client's deadline ends its request upstream as well."""
    client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
    script = '{"tokens": 1000000, "delay_s": 0.05, "name": "late"}'
    with pytest.raises(tritonclient.utils.InferenceServerException, match="Deadline"):
        client.infer("qwen_mtp", [tensor("text_input", script)], client_timeout=2.0)
    client.close()
    wait_until((doubles.log.parent / "notes" / "cancelled-late").exists)


def test_a_message_beyond_the_limit_is_refused(doubles: TritonServer) -> None:
    """The limit on messages is the gateway's, and says what it is."""
    with (
        running_gateway(doubles.grpc_url, max_message_bytes=10_000) as small,
        raw_stream(small.gateway.address) as stream,
    ):
        stream.send(script_request(name="x" * 20_000))
        with pytest.raises(grpc.RpcError, match="larger than max") as failed:
            stream.receive()
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_losing_triton_gives_a_clear_error_and_coming_back_is_noticed(tmp_path: Path) -> None:
    """Requests in flight end in a sentence, later ones are refused; both until Triton is back."""
    with (
        triton_of_doubles(tmp_path) as triton,
        running_gateway(triton.grpc_url) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(request_id="r", tokens=1000, delay_s=0.02))
        assert text_of(stream.receive()) == "w0"
        os.kill(triton.pid, signal.SIGKILL)
        while not (response := stream.receive()).error_message:
            pass
        assert response.error_message.startswith("variant k3 was lost before the answer was")
        assert response.error_message.endswith("send the request again")
        assert response.infer_response.id == "r"
        assert thread.outcomes[-1][1].finish_reason == "error"
        variants = thread.gateway.statistics()["variants"]
        assert not variants["k3"]["is_ready"]

        def is_back() -> bool:
            triton.check()  # starts it again once it is seen to be dead
            return bool(thread.gateway.statistics()["variants"]["k3"]["is_ready"])

        wait_until(is_back)
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"


def test_a_server_s_silence_is_not_its_request_s_doing(tmp_path: Path) -> None:
    """All of its variants are silent together; the request waits for it and goes on."""
    quick = StallLimits(factor=1.0, min_s=1.5)
    with (
        triton_of_doubles(tmp_path) as triton,
        running_gateway(triton.grpc_url, stall=quick) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(tokens=20, delay_s=0.05))
        assert text_of(stream.receive()) == "w0"
        os.kill(triton.pid, signal.SIGSTOP)
        try:
            wait_until(
                lambda: (
                    not any(
                        variant["is_ready"]
                        for variant in thread.gateway.statistics()["variants"].values()
                    )
                )
            )
        finally:
            os.kill(triton.pid, signal.SIGCONT)
        assert [text_of(stream.receive()) for _ in range(19)] == [f"w{n}" for n in range(1, 20)]


def test_a_client_that_takes_nothing_is_ended(
    gateway: GatewayThread, doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end it holds neither a slot nor a stream; it is told why when it reads again."""
    monkeypatch.setattr(grpc_stream, "CLIENT_STALL_S", 0.5)
    with raw_stream(gateway.gateway.address) as slow:
        slow.send(script_request(tokens=10**6, word="x" * 100_000, name="slow"))
        wait_until((doubles.log.parent / "notes" / "cancelled-slow").exists)
        wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)
        with pytest.raises(grpc.RpcError, match="the client took nothing") as ended:
            slow.receive_to_end()
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_stopping_finishes_answers_in_flight(doubles: TritonServer) -> None:
    """A stopping gateway completes the answers that it has, and ends what clients left open."""
    with (
        running_gateway(doubles.grpc_url) as thread,
        raw_stream(thread.gateway.address) as idle,
        raw_stream(thread.gateway.address) as busy,
    ):
        idle.send(script_request(tokens=1))
        assert text_of(idle.receive()) == "w0"
        busy.send(script_request(tokens=100, delay_s=0.02))
        assert text_of(busy.receive()) == "w0"
        stopping = thread.run(thread.gateway.stop())
        assert [text_of(busy.receive()) for _ in range(99)][-1] == "w99"
        for stream in (idle, busy):
            with pytest.raises(grpc.RpcError, match="shutting down") as ended:
                stream.receive()
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        stopping.result(60)


def test_requests_on_their_way_to_a_stopping_gateway_are_answered(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment, on streams that are open; such a stream ends well when its client is done."""
    monkeypatch.setattr(grpc_stream, "LAST_REQUESTS_S", 60.0)
    with (
        running_gateway(doubles.grpc_url, grace_s=60.0) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"
        stopping = thread.run(thread.gateway.stop())
        thread.run(asyncio.sleep(0)).result(60)  # it has begun
        stream.send(script_request(tokens=2))
        assert [text_of(stream.receive()) for _ in range(2)] == ["w0", "w1"]
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.receive()
        stopping.result(60)


def test_a_client_that_asks_for_grpc_errors_gets_a_status(doubles: TritonServer, url: str) -> None:
    """The gateway answers the header itself: Triton 2.51 crashes when it is asked to."""
    with raw_stream(url, (("triton_grpc_error", "true"),)) as stream:
        stream.send(script_request(tokens=3, error_at=1))
        assert text_of(stream.receive()) == "w0"
        with pytest.raises(grpc.RpcError) as failed:
            stream.receive()
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error: the engine broke"
    with raw_stream(url, (("triton_grpc_error", "true"),)) as stream:
        stream.send(script_request(parameters={"task": "maths"}))
        with pytest.raises(grpc.RpcError, match="did you mean math"):
            stream.receive()
    assert doubles.stub_pids
    with raw_stream(url) as stream:
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"


def test_bytes_that_are_no_request_end_the_stream(url: str) -> None:
    """After garbage nothing that follows can be trusted."""
    with raw_stream(url) as stream:
        stream.send(b"\x0a\xff\xff")
        with pytest.raises(grpc.RpcError) as failed:
            stream.receive()
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
