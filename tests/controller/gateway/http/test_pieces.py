"""Bodies of very many chunks, or lines: they are read, and hold up nobody."""

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.gateway_fixtures import GatewayThread, running_gateway
from tests.http_client import ask
from trt_mtp.controller.gateway.http import pieces
from trt_mtp.serve.triton import TritonServer

URL = "/v2/models/qwen_mtp/generate"
SCRIPT = {"text_input": json.dumps({"tokens": 2})}
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway for all."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def connected(gateway: GatewayThread) -> socket.socket:
    """A connection to its HTTP port."""
    host, _, port = str(gateway.gateway.http_address).rpartition(":")
    return socket.create_connection((host, int(port)), TIMEOUT_S)


def chunked(body: bytes, size: int) -> bytes:
    """A request with `body` in chunks of so many bytes."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 100, 50_000])
def test_a_body_is_the_same_in_chunks_of_any_size(gateway: GatewayThread, size: int) -> None:
    """And so is the request that follows it on its connection."""
    body = json.dumps(SCRIPT).encode().ljust(90_000)
    whole = ask(gateway.gateway.http_address, "POST", URL, body)
    assert whole.status == 200
    with connected(gateway) as connection, connection.makefile("rb") as received:
        connection.sendall(chunked(body, size) + chunked(b"[]".ljust(9_000), size))
        answers = []
        for _ in range(2):
            status, length = received.readline(), 0
            while (line := received.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            answers.append((status, received.read(length)))
    (first, answer), (second, _) = answers
    assert first == b"HTTP/1.1 200 OK\r\n"
    assert json.loads(answer)["text_output"] == whole.json()["text_output"]
    assert second == b"HTTP/1.1 400 Bad Request\r\n"


def test_a_body_of_many_lines_is_read(gateway: GatewayThread) -> None:
    """As of a program for Windows that writes JSON for people."""
    body = json.dumps(SCRIPT).encode().replace(b"{", b"{" + b"\r\n" * 30_000, 1)
    assert ask(gateway.gateway.http_address, "POST", URL, body).status == 200


def test_connections_that_hold_pieces_are_few(
    gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps what came until it is parsed."""
    monkeypatch.setattr(pieces, "MAX_HOLDERS", 0)
    with connected(gateway) as connection:
        connection.sendall(chunked(b" " * 90_000, 1))
        with contextlib.suppress(ConnectionResetError):  # what it had sent was not read
            assert connection.recv(4096) == b""
