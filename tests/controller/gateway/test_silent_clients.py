"""Clients that take nothing, or send more than is answered: they hold no variant and no memory."""

import http.client
import json
import socket
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.http2_client import (
    call,
    connected,
    ended_streams,
    message,
    opening,
    stream_without_window,
)
from tests.http_client import ask
from trt_mtp.controller.gateway import grpc_stream, grpc_unary
from trt_mtp.controller.gateway.access import authenticator
from trt_mtp.controller.gateway.access.tenants import MAX_WAITING_BYTES
from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.grpc_stream import MAX_BYTES
from trt_mtp.controller.gateway.http import sending
from trt_mtp.controller.gateway.http.generate_json import MAX_JSON_BYTES
from trt_mtp.serve.triton import TritonServer

NUM_REQUESTS = 24
PADDING = "x" * 2**20


def num_finished(thread: GatewayThread) -> int:
    """Answers that are complete."""
    tasks = thread.gateway.statistics()["tasks"].values()
    return sum(int(task["num_finished"]) for task in tasks)


def test_a_client_that_grants_no_window_holds_no_place(doubles: TritonServer) -> None:
    """Its answers are read to their end, and wait here for it and not at their variants."""
    requests = [
        script_request(request_id=str(index), tokens=3).SerializeToString()
        for index in range(NUM_REQUESTS)
    ]
    with (
        running_gateway(doubles.grpc_url) as thread,
        stream_without_window(thread.gateway.address, requests),
    ):
        wait_until(lambda: num_finished(thread) == NUM_REQUESTS)
        running = [v["num_running"] for v in thread.gateway.statistics()["variants"].values()]
        assert running == [0, 0, 0]


def test_requests_that_wait_are_bounded_in_bytes(tmp_path: Path) -> None:
    """More of a stream is not read before some are answered; then all of them are."""
    hint = {"draft_length": "0"}
    long = script_request(tokens=1, padding=PADDING, parameters=hint)
    most = MAX_BYTES // len(long.SerializeToString())
    with (
        triton_of_doubles(tmp_path, max_batch_size=1) as narrow,
        running_gateway(narrow.grpc_url) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):

        def num_waiting() -> int:
            return int(thread.gateway.statistics()["num_waiting"])

        with raw_stream(thread.gateway.address) as busy:
            busy.send(script_request(tokens=10**6, delay_s=0.02, parameters=hint))
            assert text_of(busy.receive()) == "w0"
            for _ in range(2 * most):
                stream.send(long)
            wait_until(lambda: num_waiting() == most)
            time.sleep(0.5)  # for one more to come, if it did
            assert num_waiting() == most
        assert [text_of(stream.receive()) for _ in range(2 * most)] == ["w0"] * (2 * most)


def room_of(thread: GatewayThread) -> ByteRoom:
    """That of this machine's clients."""
    return thread.gateway.authenticator.caller((), "127.0.0.1").room


def test_messages_that_are_half_sent_are_few_and_end(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than fit into the caller's room are not read; those that are end after their time."""
    streams = range(1, 81, 2)
    with running_gateway(doubles.grpc_url) as thread, connected(thread.gateway.address) as client:
        room = room_of(thread)
        client.sendall(opening())
        for stream in streams:
            client.sendall(call(stream, "ModelInfer") + message(stream, b"half", missing=100))
        wait_until(lambda: room.num_waiting_bytes > 0)
        assert room.num_bytes == MAX_WAITING_BYTES
    wait_until(lambda: room.num_bytes == 0)
    monkeypatch.setattr(grpc_unary, "READ_TIMEOUT_S", 0.5)
    with running_gateway(doubles.grpc_url) as thread, connected(thread.gateway.address) as client:
        client.sendall(opening())
        for stream in streams:
            client.sendall(call(stream, "ModelInfer") + message(stream, b"half", missing=100))
        assert set(islice(ended_streams(client), len(streams))) == set(streams)
        wait_until(lambda: room_of(thread).num_bytes == 0)


def test_a_single_answer_that_nobody_takes_ends(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts in its caller's room for a time, over gRPC and over HTTP."""
    monkeypatch.setattr(grpc_unary, "CLIENT_STALL_S", 1.0)
    monkeypatch.setattr(sending, "CLIENT_STALL_S", 1.0)
    request = script_request(tokens=1, word="x" * 10_000, streaming=False)
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        room, raw = room_of(thread), request.SerializeToString()
        with stream_without_window(thread.gateway.address, [raw], "ModelInfer") as client:
            assert next(ended_streams(client)) == 1
        wait_until(lambda: room.num_bytes == 0)
        assert thread.gateway.http_address is not None
        host, port = thread.gateway.http_address.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port))
        connection.sock = socket.socket()
        connection.sock.settimeout(60)
        # or the kernel takes all of the answer, if it has its time
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sock.connect((host, int(port)))
        script = json.dumps({"tokens": 4, "word": "x" * (MAX_JSON_BYTES - 1000)})
        body = json.dumps({"text_input": script}).encode()
        connection.request("POST", "/v2/models/qwen_mtp/generate", body)
        wait_until(lambda: room.num_bytes > len(body))  # the answer's, which is four times as long
        wait_until(lambda: room.num_bytes == 0)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            connection.getresponse().read()
        connection.close()
    assert "Traceback" not in caplog.text


def test_more_than_a_callers_streams_may_have_waiting_is_refused(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read beyond the room is bounded, too; the stream goes on."""
    monkeypatch.setattr(grpc_stream, "MAX_CALLER_BYTES", 1000)
    with (
        running_gateway(doubles.grpc_url) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(request_id="long", padding="x" * 2000))
        refused = stream.receive()
        assert "too many bytes of requests wait" in refused.error_message
        assert refused.infer_response.id == "long"
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"


def test_a_stream_that_takes_not_even_its_first_message_ends(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC can send it no status any more; it is reset, and that is no failure of the gateway's."""
    monkeypatch.setattr(grpc_stream, "CLIENT_STALL_S", 0.5)
    raw = script_request(tokens=3).SerializeToString()
    with (
        running_gateway(doubles.grpc_url) as thread,
        stream_without_window(thread.gateway.address, [raw]) as client,
    ):
        assert next(ended_streams(client)) == 1
    assert "Traceback" not in caplog.text


def test_single_answers_of_a_caller_are_not_kept_without_bound(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read whole here, and a request can ask for many of them."""
    monkeypatch.setattr(authenticator, "MAX_WAITING_BYTES", 1_000)
    with running_gateway(doubles.grpc_url, http_port=0) as gateway:
        for size, status in ((100, 200), (5_000, 429)):
            script = {"tokens": 1, "word": "x" * size}
            body = {"model": "qwen_mtp", "prompt": json.dumps(script)}
            reply = ask(gateway.gateway.http_address, "POST", "/v1/completions", body)
            assert reply.status == status
        assert "hold too many bytes here" in reply.error
