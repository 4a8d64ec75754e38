"""Messages that are half sent on streams: how many, how long, how much memory at most."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fuzz.wire_seeds import TOKEN, write_tokens
from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    wait_until,
)
from tests.http2_client import SERVICE_PATH, stream_without_window
from tests.http2_flow import half_sent
from trt_mtp.controller.gateway.access.config import AccessConfig, ConnectionLimits
from trt_mtp.controller.gateway.cli import gateway
from trt_mtp.controller.gateway.gateway import GatewayConfig
from trt_mtp.serve.triton import TritonServer

GIB = 2**30
WATCH = "/grpc.health.v1.Health/Watch"
BEARER = (("authorization", f"Bearer {TOKEN}"),)


def answer_of(thread: GatewayThread) -> str:
    """What a good client gets, or the status."""
    with raw_stream(thread.gateway.address) as stream:
        stream.send(script_request(tokens=1))
        try:
            return text_of(stream.receive())
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


def test_the_most_that_one_caller_can_have_half_sent_is_what_the_docs_say() -> None:
    """gRPC keeps it for each stream; SECURITY.md has the product."""
    defaults: dict[Any, Any] = {option.name: option.default for option in gateway.params}
    most = defaults["max_message_mb"] * 2**20 * defaults["max_caller_streams"]
    assert most == 4 * GIB
    assert most == GatewayConfig("").max_message_bytes * ConnectionLimits().max_caller_streams
    said = (Path(__file__).parents[4] / "SECURITY.md").read_text()
    assert "4 MiB x 1,024 streams = 4 GiB" in said


def test_a_caller_has_so_many_streams(doubles: TritonServer) -> None:
    """Those beyond it are refused unread, over all connections; then there is room again."""
    access = AccessConfig(connections=ConnectionLimits(max_caller_streams=4))
    with running_gateway(doubles.grpc_url, access=access) as thread:
        with half_sent(thread.gateway.address, 20, 10_000) as flow:
            wait_until(lambda: flow.send(0.1) == 0 and len(flow.ended) == 16)
            refused = answer_of(thread)
            assert refused.startswith("RESOURCE_EXHAUSTED: you have 4 streams open here")
        wait_until(lambda: answer_of(thread) == "w0")


def test_a_stream_without_a_whole_request_ends(doubles: TritonServer) -> None:
    """After a time; one with an answer that takes longer goes on."""
    access = AccessConfig(connections=ConnectionLimits(idle_s=1.0))
    with running_gateway(doubles.grpc_url, access=access) as thread:
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request(tokens=30, delay_s=0.1))
            assert [text_of(stream.receive()) for _ in range(30)] == [f"w{n}" for n in range(30)]
            with pytest.raises(grpc.RpcError) as ended:
                stream.receive()
        assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no whole request came on this stream for 1 s" in ended.value.details()
        with half_sent(thread.gateway.address, 3, 10_000) as flow:
            wait_until(lambda: flow.send(0.1) == 0 and flow.ended == {1, 3, 5})


def test_who_watches_the_health_is_counted(doubles: TritonServer, tmp_path: Path) -> None:
    """Strangers by their address, and apart from callers that are known."""
    access = AccessConfig(
        tokens=write_tokens(tmp_path / "tokens.json"),
        connections=ConnectionLimits(max_caller_streams=2),
    )
    with (
        running_gateway(doubles.grpc_url, access=access) as thread,
        grpc.insecure_channel(thread.gateway.address) as channel,
    ):
        watch = channel.unary_stream(WATCH)
        for metadata in (BEARER, ()):
            open_calls = [watch(b"", metadata=metadata, timeout=60) for _ in range(2)]
            assert [next(each) for each in open_calls] == [b"\x08\x01"] * 2
            with pytest.raises(grpc.RpcError) as refused:
                next(watch(b"", metadata=metadata, timeout=60))
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("metadata", [BEARER, ()])
def test_single_calls_are_counted_as_well(
    doubles: TritonServer, tmp_path: Path, metadata: tuple[tuple[str, str], ...]
) -> None:
    """One that isn't answered, or whose answer isn't taken, has a place, on whatever connection."""
    access = AccessConfig(
        tokens=write_tokens(tmp_path / "tokens.json"),
        connections=ConnectionLimits(max_streams=1),
    )
    method = "ModelReady" if metadata else "ServerLive"  # which strangers may ask for
    question = b"\n\bqwen_mtp" if metadata else b""
    with (
        running_gateway(doubles.grpc_url, access=access) as thread,
        grpc.insecure_channel(thread.gateway.address) as channel,
    ):
        ask = channel.unary_unary(f"{SERVICE_PATH}{method}")

        def status() -> grpc.StatusCode:
            return ask.future(question, metadata=metadata, timeout=60).code()

        assert status() is grpc.StatusCode.OK
        with stream_without_window(thread.gateway.address, [question], method, metadata) as held:
            while b"application/grpc" not in held.recv(1 << 16):  # the answer has begun
                pass
            assert status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: status() is grpc.StatusCode.OK)
