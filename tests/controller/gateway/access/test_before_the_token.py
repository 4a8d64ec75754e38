"""What somebody may cost who isn't known, and a token that is taken back."""

import contextlib
import hashlib
import http.client
import json
import resource
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.controller.gateway.gateway_process import gateway_process
from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    wait_until,
)
from tests.http_client import ask
from trt_mtp.controller.gateway.access.config import MAX_FILES, AccessConfig, ConnectionLimits
from trt_mtp.controller.gateway.http.body import unpacked
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.triton import TritonServer

MIB = 1024 * 1024
MODEL = "/v2/models/qwen_mtp"
MAX_CONNECTIONS = 8


def write_tenants(path: Path, *tokens: str, **limits: float) -> None:
    """One tenant with these tokens."""
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    tenants = [{"name": "one", "token_sha256": hashes, **limits}]
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the token "good"."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    write_tenants(path, "good")
    return path


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer, tokens: Path) -> Iterator[GatewayThread]:
    """A gateway that knows this token, with few connections and little patience."""
    limits = ConnectionLimits(max_connections=MAX_CONNECTIONS, idle_s=60.0, handshake_s=2.0)
    access = AccessConfig(tokens=tokens, connections=limits)
    with running_gateway(doubles.grpc_url, http_port=0, access=access) as thread:
        yield thread


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize("method", ["ServerLive", "ModelInfer", "ModelReady"])
def test_a_call_without_a_token_has_no_message_read(gateway: GatewayThread, method: str) -> None:
    """Hundreds of megabytes that are sent before the token is known stay with their sender."""
    raw = b"\x0a" + b"\xff\xff\xff\x1f" + b"x" * 10  # a field that goes on for 64 MiB
    with grpc.insecure_channel(gateway.gateway.address) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        if method == "ServerLive":
            assert pb.ServerLiveResponse.FromString(call(b"x" * 60 * MIB, timeout=60)).live
            return
        with pytest.raises(grpc.RpcError) as refused:
            call(raw, timeout=60)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_messages_without_a_token_take_no_memory(
    doubles: TritonServer, tokens: Path, tmp_path: Path
) -> None:
    """Of eight calls that send 60 MiB each, gRPC takes what its windows hold and no more."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--tokens", str(tokens))
    with gateway_process(tmp_path / "log", *options) as running:
        before = peak_mib(running.process.pid)
        with grpc.insecure_channel(running.ready["gateway"]) as channel:
            for method in ("ModelInfer", "ServerLive"):
                call = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
                for future in [call.future(b"x" * 60 * MIB, timeout=60) for _ in range(4)]:
                    is_open = method == "ServerLive"
                    assert (future.code() == grpc.StatusCode.OK) == is_open
        assert peak_mib(running.process.pid) - before < 8 * 60 / 3


def test_a_shells_few_files_are_no_limit(
    doubles: TritonServer, tokens: Path, tmp_path: Path
) -> None:
    """A gateway opens as many as its user may, so that connections aren't fewer than necessary."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
    try:
        options = ("--triton", doubles.grpc_url, "--port", "0", "--tokens", str(tokens))
        with gateway_process(tmp_path / "log", *options) as running:
            now, _ = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert now == (MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES))


def test_compressed_bodies_are_not_unpacked_for_strangers(gateway: GatewayThread) -> None:
    """They get their 401; for the known, bombs end at the limit and foreign codings are 415."""
    address, bomb = gateway.gateway.http_address, zlib.compress(b"\0" * 200 * MIB, 9)
    for token, status in (("", 401), ("good", 413)):
        reply = ask(
            address,
            "POST",
            f"{MODEL}/generate",
            bomb,
            token=token,
            headers={"Content-Encoding": "deflate"},
        )
        assert reply.status == status
    reply = ask(
        address,
        "POST",
        f"{MODEL}/generate",
        b"x",
        token="good",
        headers={"Content-Encoding": "br"},
    )
    assert reply.status == 415
    assert "Content-Encoding 'br' is not taken" in reply.error


@pytest.mark.parametrize("raw", [b"", b"text", zlib.compress(b"whole")[:-3]])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_not_packed_is_said(raw: bytes, coding: str) -> None:
    """One sentence, not a traceback."""
    with pytest.raises(InputError, match=f"is not {coding}, or not all of it"):
        unpacked(raw, coding, 100)


def is_closed(connection: socket.socket) -> bool:
    """Has the other side closed it?"""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("sends", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-"])
@pytest.mark.parametrize("door", ["grpc", "http"])
def test_silent_connections_are_few_and_end(
    gateway: GatewayThread, door: str, sends: bytes
) -> None:
    """Those beyond the limit are closed at once, the others after the time for their first bytes.

    Then there is room again.
    """
    grpc_address, http_address = gateway.gateway.address, gateway.gateway.http_address
    assert http_address is not None
    host, _, port = (http_address if door == "http" else grpc_address).rpartition(":")
    connections = [socket.create_connection((host, int(port)), 60) for _ in range(20)]
    try:
        for connection in connections:
            connection.setblocking(False)
            if door == "http":
                connection.send(sends)
        wait_until(lambda: sum(map(is_closed, connections)) >= 20 - MAX_CONNECTIONS)
        wait_until(lambda: all(map(is_closed, connections)))
    finally:
        for connection in connections:
            connection.close()

    def is_served() -> bool:
        try:
            return ask(http_address, "GET", "/v2/health/live").status == 200
        except (OSError, http.client.HTTPException):
            return False

    wait_until(is_served)


def test_headers_that_never_end_take_no_memory(gateway: GatewayThread) -> None:
    """Nobody has said by then who sends them; each of 128 may be 16 KiB."""
    assert gateway.gateway.http_address is not None
    host, _, port = gateway.gateway.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(OSError):  # it is closed before all is sent
            for number in range(100):
                connection.sendall(b"X-%d: %b\r\n" % (number, b"x" * 16_000))
                time.sleep(0.001)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
            return
    pytest.fail("they were taken")


def test_two_authorizations_are_none(gateway: GatewayThread) -> None:
    """Over gRPC and HTTP alike, whichever of the two is right."""
    for metadata in (bearer("good") + bearer("bad"), bearer("bad") + bearer("good")):
        with raw_stream(gateway.gateway.address, metadata) as stream:
            stream.send(script_request(tokens=1))
            with pytest.raises(grpc.RpcError) as refused:
                stream.receive()
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert gateway.gateway.http_address is not None
    connection = http.client.HTTPConnection(gateway.gateway.http_address, timeout=60)
    connection.putrequest("GET", MODEL)
    for token in ("good", "good"):
        connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize("way", ["stream", "unary"])
def test_variants_by_name_get_around_nothing(gateway: GatewayThread, way: str) -> None:
    """A variant's own name is refused to callers with limits; another model counts as a request."""
    with raw_stream(gateway.gateway.address, bearer("good")) as stream:
        if way == "stream":
            stream.send(script_request(model="other", tokens=1))
            assert text_of(stream.receive()) == "w0"
            stream.send(script_request(model="qwen_mtp_k3", tokens=1))
            with pytest.raises(grpc.RpcError) as refused:
                stream.receive_to_end()
        else:
            with grpc.insecure_channel(gateway.gateway.address) as channel:
                call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
                raw = script_request(model="qwen_mtp_k3").SerializeToString()
                with pytest.raises(grpc.RpcError) as refused:
                    call(raw, metadata=bearer("good"), timeout=60)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "qwen_mtp_k3 is a variant of qwen_mtp" in refused.value.details()
    with raw_stream(gateway.gateway.address, bearer("good")) as stream:
        stream.send(script_request(model="qwen_mtp_k3\0", tokens=1))  # to Triton the same model
        with pytest.raises(grpc.RpcError, match="NUL character"):
            stream.receive()


def test_a_token_that_is_taken_back_ends_what_it_has(doubles: TritonServer, tmp_path: Path) -> None:
    """Streams over gRPC and HTTP end by themselves, and those of a token that stays go on."""
    path = tmp_path / "tokens.json"
    write_tenants(path, "old", "stays")
    access = AccessConfig(tokens=path)
    script = {"tokens": 500, "delay_s": 0.05}
    with (
        running_gateway(doubles.grpc_url, http_port=0, access=access) as thread,
        raw_stream(thread.gateway.address, bearer("old")) as gone,
        raw_stream(thread.gateway.address, bearer("stays")) as stays,
    ):
        address = thread.gateway.http_address
        assert address is not None
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request(
            "POST",
            f"{MODEL}/generate_stream",
            json.dumps({"text_input": json.dumps(script), "streaming": True}),
            {"Authorization": "Bearer old"},
        )
        events = connection.getresponse()
        assert events.readline().startswith(b"data: ")
        for stream in (gone, stays):
            stream.send(script_request(tokens=500, delay_s=0.05))
            assert text_of(stream.receive()) == "w0"
        time.sleep(0.1)  # so that the file's time of change differs
        write_tenants(path, "stays")
        with pytest.raises(grpc.RpcError) as refused:
            gone.receive_to_end()
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            events.read()
        assert text_of(stays.receive()) == "w1"
        connection.close()


def test_tools_and_broken_answers_are_charged(doubles: TritonServer, tmp_path: Path) -> None:
    """Tools are part of the prompt; what was made of a cancelled answer is paid for."""
    path = tmp_path / "tokens.json"
    write_tenants(path, "good", tokens_per_min=500)
    with (
        running_gateway(doubles.grpc_url, access=AccessConfig(tokens=path)) as thread,
        raw_stream(thread.gateway.address, bearer("good")) as stream,
    ):
        request = script_request(tokens=1)
        tools = json.dumps([{"name": "f" * 8_000}]).encode()
        request.inputs.add(name="tools", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(tools).to_bytes(4, "little") + tools)
        stream.send(request)
        assert text_of(stream.receive()) == "w0"
        stream.send(script_request(tokens=1))
        while not (error := stream.receive().error_message):
            pass
        assert "may have 500 tokens a minute" in error
