"""Bearer tokens at the gateway, limits on requests, and what its log never holds."""

import hashlib
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conftest import CliResult
from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    wait_until,
)
from tests.http_client import ask, sent
from trt_mtp.controller.gateway.access.authenticator import MAX_METADATA_BYTES
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.request_limits import MAX_PARTS
from trt_mtp.serve.kserve import SERVICE, is_final
from trt_mtp.serve.triton import TritonServer

GENERATE = "/v2/models/qwen_mtp/generate"
TENANTS: dict[str, dict[str, float]] = {
    "free": {},
    "one-stream": {"concurrent_streams": 1},
    "slow": {"requests_per_s": 0.01},
    "short": {"tokens_per_min": 10},
}


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata with the token of a tenant, which is its name backwards."""
    return (("authorization", f"Bearer {name[::-1]}"),)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tenants' file."""
    tenants = [
        {"name": name, "token_sha256": [hashlib.sha256(name[::-1].encode()).hexdigest()], **limits}
        for name, limits in TENANTS.items()
    ]
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    return path


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer, tokens: Path) -> Iterator[GatewayThread]:
    """A gateway that asks for tokens."""
    access = AccessConfig(tokens=tokens, max_prompt_tokens=100)
    with running_gateway(doubles.grpc_url, http_port=0, access=access) as thread:
        yield thread


@pytest.fixture
def url(gateway: GatewayThread) -> str:
    """Where it listens for gRPC."""
    return gateway.gateway.address


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_every_call_but_health_needs_a_token(url: str, method: str) -> None:
    """No token and a wrong one are UNAUTHENTICATED, in unary calls and streams."""
    for metadata in ((), (("authorization", "Bearer guess"),)):
        with grpc.insecure_channel(url) as channel:
            path = f"/{SERVICE.full_name}/{method}"
            if method == "ModelStreamInfer":
                with pytest.raises(grpc.RpcError) as refused:
                    next(channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=60))
            elif method in ("ServerLive", "ServerReady"):
                assert channel.unary_unary(path)(b"", metadata=metadata, timeout=60)
                continue
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(path)(b"", metadata=metadata, timeout=60)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert "token" in refused.value.details()


def test_http_needs_a_token_too(gateway: GatewayThread) -> None:
    """All but health is 401 without one."""
    address = gateway.gateway.http_address
    for path in ("/metrics", "/v2/models/qwen_mtp", "/v2/models/qwen_mtp/ready"):
        assert ask(address, "GET", path).status == 401
        assert ask(address, "GET", path, token="guess").status == 401
        assert ask(address, "GET", path, token="eerf").status == 200
    assert ask(address, "POST", GENERATE, {"text_input": "{}"}).status == 401
    assert ask(address, "POST", GENERATE, {"text_input": "{}"}, token="eerf").status == 200
    assert ask(address, "GET", "/v2/health/ready").status == 200


def test_the_token_says_who_the_tenant_is(gateway: GatewayThread, url: str) -> None:
    """The request parameter `tenant` counts for nothing beside it."""
    with raw_stream(url, bearer("free")) as stream:
        stream.send(script_request(tokens=1, parameters={"tenant": "somebody-else"}))
        assert text_of(stream.receive()) == "w0"
    assert gateway.policy.seen[-1].tenant == "free"


def test_conversations_of_two_tenants_are_two(gateway: GatewayThread, url: str) -> None:
    """Whatever they call them: what is learned of one, and where it is, says nothing of another."""
    seen = []
    for name in ("free", "short", "free"):
        with raw_stream(url, bearer(name)) as stream:
            stream.send(script_request(tokens=1, parameters={"session_id": "chat"}))
            assert text_of(stream.receive()) == "w0"
        seen.append(gateway.policy.seen[-1].session_id)
    assert seen[0] == seen[2] != seen[1]
    with raw_stream(url, bearer("free")) as stream:
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"
    assert gateway.policy.seen[-1].session_id is None


def test_requests_in_flight_are_limited(gateway: GatewayThread, url: str) -> None:
    """One over the limit is refused, the others go on; a client that leaves makes room."""
    with raw_stream(url, bearer("one-stream")) as stream:
        stream.send(script_request(tokens=500, delay_s=0.02))
        assert text_of(stream.receive()) == "w0"
        address = gateway.gateway.http_address
        reply = ask(address, "POST", GENERATE, {"text_input": "{}"}, token="maerts-eno")
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert "tenant one-stream may have 1 requests in flight" in reply.error

    def is_free() -> bool:
        body = {"text_input": '{"tokens": 1}'}
        return ask(address, "POST", GENERATE, body, token="maerts-eno").status == 200

    wait_until(is_free)


def test_rates_are_limited(gateway: GatewayThread, url: str) -> None:
    """Beyond a rate the stream goes on and its requests are refused, over HTTP with a time."""
    with raw_stream(url, bearer("slow")) as stream:
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"
        stream.send(script_request(request_id="second", tokens=1))
        refused = stream.receive()
    assert "tenant slow may have 0.01 requests a second: try again in" in refused.error_message
    assert refused.infer_response.id == "second"
    reply = ask(gateway.gateway.http_address, "POST", GENERATE, {"text_input": "{}"}, token="wols")
    assert reply.status == 429
    assert 0 < int(reply.headers["Retry-After"]) <= 100


def test_tokens_are_charged_when_the_answer_is_over(url: str) -> None:
    """An answer may exceed what is left; the next request waits for it."""
    with raw_stream(url, bearer("short")) as stream:
        stream.send(script_request(tokens=30))
        assert [text_of(stream.receive()) for _ in range(30)][-1] == "w29"
        stream.send(script_request(tokens=1))
        assert "tenant short may have 10 tokens a minute" in stream.receive().error_message


@pytest.mark.parametrize(
    ("what", "code", "details"),
    [
        ("prompt", grpc.StatusCode.INVALID_ARGUMENT, "has about 125 tokens"),
        ("ids", grpc.StatusCode.INVALID_ARGUMENT, "has 101 tokens: at most 100"),
        ("inputs", grpc.StatusCode.INVALID_ARGUMENT, "has 65 inputs: at most 64"),
        ("outputs", grpc.StatusCode.INVALID_ARGUMENT, "has 65 outputs"),
        ("metadata", grpc.StatusCode.RESOURCE_EXHAUSTED, "metadata"),
    ],
)
def test_what_is_too_much_is_refused(
    url: str, what: str, code: grpc.StatusCode, details: str
) -> None:
    """Prompts, tensors and metadata have limits, each named when it is passed."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    if what == "prompt":
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        request.raw_input_contents.append((500).to_bytes(4, "little") + b"x" * 500)
    elif what == "ids":
        request.inputs.add(name="input_ids", datatype="INT32", shape=[101])
        request.raw_input_contents.append(bytes(4 * 101))
    for index in range(MAX_PARTS + 1):
        if what == "inputs":
            request.inputs.add(name=f"i{index}")
        elif what == "outputs":
            request.outputs.add(name=f"o{index}")
    metadata: Any = bearer("free")
    if what == "metadata":
        metadata += (("padding", "x" * MAX_METADATA_BYTES),)
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            call(request.SerializeToString(), metadata=metadata, timeout=60)
    assert refused.value.code() == code
    assert details in refused.value.details()


def test_requests_that_are_no_http_are_not_logged_either(
    gateway: GatewayThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Malformed requests are refused, and neither they nor what they hold are in the log.

    Anybody could fill the disk with them.
    """
    caplog.set_level(logging.DEBUG)
    host, _, port = str(gateway.gateway.http_address).partition(":")
    for request in (
        b"GET / HTTP/1.1\r\nAuthorization\0: Bearer S3CRET\r\n\r\n",
        b"S3CRET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: S3CRET\r\n\r\nS3CRET",
        b"GET / HTTP/1.1\r\nAuthorization: Bearer " + b"S3CRET" * 2000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: S3CRET\xff\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(request)
            assert b"400 Bad Request" in connection.recv(100)
    assert "Error handling request" not in caplog.text
    assert "S3CRET" not in caplog.text


def test_neither_prompts_nor_tokens_are_logged(
    gateway: GatewayThread, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether requests are answered, refused, broken off or cancelled, at any log level."""
    caplog.set_level(logging.DEBUG)
    secret = "S3CRET-PROMPT"
    address = gateway.gateway.http_address
    scripts: list[dict[str, Any]] = [{"tokens": 1}, {"tokens": 2, "error_at": 1}]
    with raw_stream(url, bearer("free")) as stream:
        for script in scripts:
            stream.send(script_request(name=secret, **script))
            while not is_final(stream.receive()):
                pass
        stream.send(script_request(name=secret, parameters={"task": secret}))
        stream.receive()
    with raw_stream(url, (("authorization", f"Bearer {secret}"),)) as stream:
        stream.send(script_request())
        with pytest.raises(grpc.RpcError):
            stream.receive()
    bodies: list[dict[str, Any]] = [
        {"text_input": json.dumps({"name": secret})},
        {"text_input": [secret, secret]},
    ]
    for body in bodies:
        ask(address, "POST", GENERATE, body, token="eerf")
        ask(address, "POST", GENERATE, body, token=secret)
    ask(address, "POST", GENERATE, f'{{"text_input": "{secret}'.encode(), token="eerf")
    body = {"text_input": json.dumps({"name": secret, "delay_s": 0.05}), "streaming": True}
    with sent(str(address), "POST", f"{GENERATE}_stream", body, "eerf") as response:
        response.readline()
    wait_until(lambda: not any(v.num_running for v in gateway.gateway.pool.variants.values()))
    assert secret not in caplog.text
    assert "eerf" not in caplog.text


def test_tokens_of_an_answer_that_is_brought_count_as_its_prompt(url: str) -> None:
    """A variant reads them all the same."""
    request = script_request(tokens=200)
    request.inputs.add(name="emitted_ids", datatype="INT32", shape=[101])
    request.raw_input_contents.append(bytes(4 * 101))
    with raw_stream(url, bearer("free")) as stream:
        stream.send(request)
        assert "tokens: at most 100 are taken here" in stream.receive().error_message


def test_an_empty_variable_opens_no_gateway(
    cli: Callable[..., CliResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a compose file names a variable that nobody has set."""
    monkeypatch.setenv("TRT_MTP_GATEWAY_TOKENS", "")
    result = cli("gateway", "--triton", "127.0.0.1:1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "TRT_MTP_GATEWAY_TOKENS is set and empty" in result.err
