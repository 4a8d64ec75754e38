"""The attacks of benchmarks.attacks: each is begun, held while it is looked at, and let go."""

import contextlib
import http.client
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import brotli  # type: ignore[import-untyped]
import grpc

from tests.fuzz.wire_seeds import TOKEN
from tests.gateway_fixtures import script_request
from tests.http2_client import RST_STREAM, call, connected, frame, opening, stream_without_window
from tests.http2_flow import half_sent
from trt_mtp.serve.kserve import SERVICE

MIB = 1024 * 1024
KNOWN = (("authorization", f"Bearer {TOKEN}"),)
GENERATE = "/v2/models/qwen_mtp/generate"
LATER_S = 30.0  # for an answer that an attack waits for
IDLE_S = 30.0  # that connections stay without a request

Attack = Callable[[dict[str, Any]], AbstractContextManager[None]]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Callable[[dict[str, Any]], Iterator[None]]], Attack]:
    """Put one into ATTACKS, where it is in the order of this file."""

    def add(begin: Callable[[dict[str, Any]], Iterator[None]]) -> Attack:
        ATTACKS[name] = contextmanager(begin)
        return ATTACKS[name]

    return add


def post(ready: dict[str, Any], body: bytes, **headers: str) -> None:
    """Send a body and wait for what comes of it."""
    connection = http.client.HTTPConnection(ready["http"], timeout=LATER_S)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", GENERATE, body, headers)
        connection.getresponse().read()
    connection.close()


def send(ready: dict[str, Any], method: str, messages: list[bytes], metadata: Any = None) -> None:
    """Unary calls side by side, whatever becomes of them."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(ready["gateway"], options) as channel:
        unary = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        for future in [unary.future(raw, LATER_S, metadata) for raw in messages]:
            future.exception()


@attack("no token: 16 bodies of 1 GiB, packed with brotli")
def bombs(ready: dict[str, Any]) -> Iterator[None]:
    packing = brotli.Compressor(quality=9)
    body = b"".join(packing.process(bytes(MIB)) for _ in range(1024)) + packing.finish()
    for _ in range(16):
        post(ready, body, **{"Content-Encoding": "br"})
    yield


@attack("no token: 16 messages of 15 MiB, half sent")
def strangers_messages(ready: dict[str, Any]) -> Iterator[None]:
    with half_sent(ready["gateway"], 16, 15 * MIB, method="ModelInfer"):
        yield


@attack("no token: 20,000 calls begun and reset")
def resets(ready: dict[str, Any]) -> Iterator[None]:
    with connected(ready["gateway"]) as connection, contextlib.suppress(OSError):
        connection.sendall(opening())
        for number in range(20_000):
            stream = 2 * number + 1
            reset = frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            connection.sendall(call(stream) + reset)
            while select.select([connection], [], [], 0)[0] and connection.recv(1 << 16):
                pass
        yield
        return
    yield


@attack("no token: 500 silent connections to each port, after 30 s")
def silent(ready: dict[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for address in (ready["gateway"], ready["http"]):
            host, _, port = address.rpartition(":")
            for _ in range(500):
                one = socket.create_connection((host, int(port)), LATER_S)
                stack.enter_context(one)
        time.sleep(IDLE_S)
        yield


@attack("token: 24 answers that are not taken, of 24 places")
def no_window(ready: dict[str, Any]) -> Iterator[None]:
    messages = [script_request(request_id=f"{n}", tokens=3).SerializeToString() for n in range(24)]
    with stream_without_window(ready["gateway"], messages, metadata=KNOWN):
        time.sleep(1)
        yield


@attack("token: a parameter's name of 15 MiB")
def long_name(ready: dict[str, Any]) -> Iterator[None]:
    request = script_request(parameters={"draft_length" * (15 * MIB // 12): True})
    send(ready, "ModelInfer", [request.SerializeToString()], KNOWN)
    yield


@attack("token: JSON of 7 million ids")
def many_ids(ready: dict[str, Any]) -> Iterator[None]:
    body = b'{"input_ids":[' + b"1," * 7_000_000 + b"1]}"
    post(ready, body, Authorization=f"Bearer {TOKEN}")
    yield


@attack("token: JSON of 2 million stop texts")
def many_stops(ready: dict[str, Any]) -> Iterator[None]:
    stops = b'"ab",' * 2_000_000 + b'"ab"'
    body = b'{"text_input":"{}","sampling_param_stop":[' + stops + b"]}"
    post(ready, body, Authorization=f"Bearer {TOKEN}")
    yield


@attack("token: 150 requests of 3.9 MiB on a stream, none answered")
def waiting(ready: dict[str, Any]) -> Iterator[None]:
    script: dict[str, Any] = {"tokens": 10**6, "delay_s": 1.0, "padding": "x" * int(3.9 * MIB)}
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    raw = script_request(parameters={"draft_length": "0"}, **script).SerializeToString()
    with grpc.insecure_channel(ready["gateway"], options) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        call = stream((raw for _ in range(150)), metadata=KNOWN)
        time.sleep(10)
        yield
        call.cancel()


@attack("token: 100 messages of 3.9 MiB, half sent on streams")
def half_messages(ready: dict[str, Any]) -> Iterator[None]:
    with half_sent(ready["gateway"], 100, int(3.9 * MIB), KNOWN):
        yield


@attack("token: 5,000 streams on one connection")
def many_streams(ready: dict[str, Any]) -> Iterator[None]:
    with half_sent(ready["gateway"], 5_000, 1_000, KNOWN):
        yield
