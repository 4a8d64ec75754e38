"""The gateway over HTTP, beside the Triton behind it."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.http

from tests.gateway_fixtures import GatewayThread, running_gateway, wait_until
from tests.http_client import Reply, ask, sent
from trt_mtp.controller.gateway.http import sending
from trt_mtp.serve.contract import VARIANT_ONLY
from trt_mtp.serve.triton import TritonServer

MODEL = "/v2/models/qwen_mtp"
OWN_KEYS = {"variant", "task", "decision_id"}


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with HTTP."""
    with running_gateway(doubles.grpc_url, http_port=0, max_message_bytes=100_000) as thread:
        yield thread


@pytest.fixture
def url(gateway: GatewayThread) -> str:
    """Where it serves HTTP."""
    assert gateway.gateway.http_address is not None
    return gateway.gateway.http_address


def prompt(**script: Any) -> str:
    """A text that tells a double what to answer."""
    return json.dumps(script)


def without_identity(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what tells the gateway's from a variant's."""
    return {key: value for key, value in answer.items() if key not in {"model_name", *OWN_KEYS}}


ECHO = prompt(tokens=1, echo=True)
REQUESTS = [
    {"text_input": ECHO},
    {"text_input": [ECHO]},
    {"text_input": prompt(tokens=2), "id": "r1"},  # which Triton makes a parameter as well
    {"text_input": ECHO, "task": "qa", "parameters": {"tenant": "t", "session_id": "s"}},
    {"text_input": ECHO, "parameters": {"sampling_param_max_tokens": 4}},
    {"text_input": ECHO, "sampling_param_max_tokens": 7, "sampling_param_temperature": 0.25},
    {"text_input": ECHO, "sampling_param_temperature": 1, "sampling_param_seed": 2**64 - 1},
    {"text_input": ECHO, "sampling_param_stop": ["x", "y\u00fc\n"], "return_finish_reason": False},
    {"text_input": ECHO, "sampling_param_stop": "x", "streaming": False},
    {"text_input": ECHO, "input_ids": [1, -2, 3]},
    {"text_input": ECHO, "input_ids": 5},
    {"text_input": ECHO, "input_ids": []},
    {"text_input": prompt(tokens=2, separate_final=True)},
    {"input_ids": [1, 2, 3]},
    {},
]


def for_clients(answer: dict[str, Any]) -> dict[str, Any]:
    """A variant's answer as clients get it."""
    return without_identity({k: v for k, v in answer.items() if k not in VARIANT_ONLY})


@pytest.mark.parametrize("request_body", REQUESTS)
def test_generate_answers_as_triton_does(
    url: str, doubles: TritonServer, request_body: dict[str, Any]
) -> None:
    """The variant gets the same tensors and parameters, the client the same JSON.

    Without a seed, the gateway would draw one.
    """
    request_body = {"sampling_param_seed": 5, **request_body}
    own = ask(url, "POST", f"{MODEL}/generate", request_body)
    tritons = ask(doubles.http_url, "POST", f"{MODEL}_k3/generate", request_body)
    assert (own.status, tritons.status) == (200, 200)
    assert own.headers["Content-Type"].startswith("application/json")
    assert without_identity(own.json()) == for_clients(tritons.json())
    assert own.json()["model_name"] == "qwen_mtp"
    assert own.json()["variant"] == "k3"
    assert own.json().keys() >= OWN_KEYS


@pytest.mark.parametrize(
    "request_body",
    [
        {"text_input": prompt(tokens=3), "streaming": True},
        {"text_input": prompt(tokens=3), "streaming": True, "id": "q"},
        {"text_input": prompt(tokens=3)},
        {"text_input": prompt(tokens=3, separate_final=True), "streaming": True},
        {
            "text_input": prompt(tokens=2, separate_final=True),
            "streaming": True,
            "triton_enable_empty_final_response": True,
        },
    ],
)
def test_generate_stream_sends_tritons_events(
    url: str, doubles: TritonServer, request_body: dict[str, Any]
) -> None:
    """One server-sent event for each response, as Triton makes them."""
    own = ask(url, "POST", f"{MODEL}/generate_stream", request_body)
    tritons = ask(doubles.http_url, "POST", f"{MODEL}_k3/generate_stream", request_body)
    assert own.headers["Content-Type"] == tritons.headers["Content-Type"]
    assert own.headers["X-Accel-Buffering"] == "no"  # or nginx sends it all at once
    assert [without_identity(event) for event in own.events()] == [
        for_clients(event) for event in tritons.events()
    ]


@pytest.mark.parametrize(
    ("request_body", "sentence"),
    [
        ({"text_input": ["a", "b"]}, "text_input takes one value, and this request has 2"),
        ({"text_input": 5}, "text_input has to be a text, not a number"),
        ({"text_input": None}, "text_input has to be a text, not null"),
        ({"text_input": {"a": 1}}, "text_input has to be a text, not an object"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids has to be a whole number of 32 bits, not a list"),
        ({"input_ids": [1.5]}, "input_ids has to be a whole number of 32 bits"),
        ({"sampling_param_max_tokens": True}, "a whole number of 32 bits, not true or false"),
        ({"sampling_param_temperature": "1"}, "sampling_param_temperature has to be a number"),
        ({"sampling_param_seed": -1}, "sampling_param_seed has to be a whole number of 64 bits"),
        ({"streaming": 1}, "streaming has to be true or false"),
        ({"task": None}, "parameter task has to be a text, true, false, or a number of 64 bits"),
        ({"task": ["qa"]}, "parameter task has to be"),
        ({"max_tokens": [4]}, "'max_tokens'; did you mean sampling_param_max_tokens?"),
        ({"stop_words": ["a"]}, "'stop_words'; did you mean sampling_param_stop?"),
        ({"parameters": 3}, "parameters has to be a JSON object"),
        ({"id": 3}, "id has to be a text"),
        ([], "has to be a JSON object"),
        (b"{", "is not JSON (column 2:"),
        (b"", "is not JSON (column 1:"),
        (b'{"text_input": "a", "text_input": "b"}', "a key is twice"),
        (b'{"text_input": "\\ud800"}', "text_input has half a surrogate pair in it"),
    ],
)
def test_what_triton_refuses_is_refused_in_a_sentence(
    url: str, doubles: TritonServer, request_body: Any, sentence: str
) -> None:
    """The same requests are errors, here with status 400 and words for people."""
    own = ask(url, "POST", f"{MODEL}/generate", request_body)
    assert own.status == 400
    assert sentence in own.error
    assert ask(doubles.http_url, "POST", f"{MODEL}_k3/generate", request_body).status >= 400


@pytest.mark.parametrize(
    ("request_body", "sentence"),
    [
        ({"input_ids": 2**31}, "input_ids has to be a whole number of 32 bits"),
        ({"sampling_param_temperature": 1e300}, "sampling_param_temperature has to be a number"),
        ({"text_input": "a", "parameters": {"text_input": "b"}}, "text_input is given twice"),
        ({"text_input": "a", "tsk": "qa"}, "unknown request parameter 'tsk'; did you mean task?"),
        ({"text_input": "a", "top_p": 0.9}, "did you mean sampling_param_top_p?"),
        ({"text_input": "a", "stream": True}, "'stream'; did you mean streaming?"),
        ({"inputs": "a"}, "'inputs'; did you mean text_input?"),
        ({"text_input": "a", "task": 2**63}, "or a number of 64 bits, not a number like that"),
        (
            {"text_input": "a", "streaming": True},
            "for streaming, use ModelStreamInfer",
        ),
        (b'{"text_input": "\xff"}', "is not JSON in UTF-8"),
        (b"[" * 90_000, "is nested too deeply"),
        (b'{"input_ids": ' + b"9" * 5000 + b"}", "is not JSON in UTF-8"),
    ],
)
def test_what_can_not_be_meant_is_refused(url: str, request_body: Any, sentence: str) -> None:
    """Numbers that would wrap, parameters that nobody reads, and bodies that are traps."""
    own = ask(url, "POST", f"{MODEL}/generate", request_body)
    assert own.status == 400
    assert sentence in own.error


def test_errors_of_a_variant(url: str, doubles: TritonServer) -> None:
    """Before the first token a status, where Triton has 400, after it an event with its words."""
    script = {"text_input": prompt(tokens=3, error_at=0), "streaming": True}
    for path in ("generate_stream", "generate"):
        body = script | {"streaming": path == "generate_stream"}
        own = ask(url, "POST", f"{MODEL}/{path}", body)
        tritons = ask(doubles.http_url, "POST", f"{MODEL}_k3/{path}", body)
        assert (own.status, own.error) == (500, tritons.error)
    late = ask(url, "POST", f"{MODEL}/generate_stream", script | {"text_input": prompt(error_at=2)})
    assert late.status == 200
    assert [event.get("text_output") for event in late.events()] == ["w0", "w1", None]
    assert late.error == "internal error: the engine broke"


def test_a_client_that_leaves_ends_its_answer(
    gateway: GatewayThread, url: str, doubles: TritonServer
) -> None:
    """Closing the connection cancels the request on the variant, and the policy is told."""
    body = {"text_input": prompt(tokens=2000, delay_s=0.02, name="http"), "streaming": True}
    with sent(url, "POST", f"{MODEL}/generate_stream", body) as response:
        assert response.readline().startswith(b"data: ")
    wait_until((doubles.log.parent / "notes" / "cancelled-http").exists)
    wait_until(lambda: gateway.outcomes[-1][1].finish_reason == "cancelled")
    wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)


def test_a_body_beyond_the_limit_is_refused(url: str) -> None:
    """The limit on messages holds for HTTP as well."""
    reply = ask(url, "POST", f"{MODEL}/generate", {"text_input": "x" * 200_000})
    assert reply.status == 413
    assert "too large" in reply.error


def answered(url: str, request: bytes) -> bytes:
    """All that comes back, up to the end of the connection."""
    host, _, port = url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "status", "sentence"),
    [
        (b"GET /health HTTP/1.1\r\nCookie: %b\r\n\r\n" % (b"a" * 20_000), 431, "at most 16384"),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 20_000), 431, "at most 16384"),
        (b"GET /health HTTP/1.1\r\n%b\r\n" % (b"A: b\r\n" * 200), 431, "too many headers"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "is not HTTP/1.1"),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400, "takes HTTP"),
        (b"GET /health HTTP/1.1\r\nA\x00: b\r\n\r\n", 400, "is not HTTP/1.1"),
        (
            b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: b\r\n\r\n",
            417,
            "Expect",
        ),
    ],
    ids=[
        "a long header",
        "a long address",
        "headers",
        "HTTP/2",
        "TLS",
        "a broken header",
        "Expect",
    ],
)
def test_what_is_no_request_is_refused_in_a_sentence(
    url: str, request_bytes: bytes, status: int, sentence: str
) -> None:
    """One line of JSON that shows nothing of the request, and the connection ends."""
    head, _, body = answered(url, request_bytes).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    error = json.loads(body)["error"]
    assert sentence in error
    assert "\n" not in error


def test_a_header_of_a_proxys_token_is_taken(url: str) -> None:
    """Cookies and tokens of proxies for sign-in may have 9 KB."""
    assert ask(url, "GET", "/health", headers={"Cookie": "a" * 12_000}).status == 200


@pytest.mark.parametrize("path", ["/health", "/v2/health/ready", "/v2/health/live"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_health_is_told_by_the_methods_of_proxies(url: str, method: str, path: str) -> None:
    """HAProxy's `option httpchk PATH` sends OPTIONS."""
    assert ask(url, method, path).status == 200


def test_a_stream_to_a_client_of_http_1_0_ends_its_connection(url: str) -> None:
    """Without chunks nothing else says where it ends, though the client would keep it open."""
    body = json.dumps({"text_input": prompt(tokens=2), "streaming": True}).encode()
    head = b"POST %b/generate_stream HTTP/1.0\r\nConnection: keep-alive\r\n" % MODEL.encode()
    reply = answered(url, head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert reply.startswith(b"HTTP/1.0 200 OK")
    assert reply.count(b"data: ") >= 2


def test_other_paths_and_methods(url: str) -> None:
    """Whatever is not served is refused in a sentence."""
    for path in ("/", "/v2/models/other/generate", f"{MODEL}_k3/generate", "/v2/repository"):
        reply = ask(url, "POST", path, {})
        assert reply.status == 404
        assert f"nothing is served at {path}" in reply.error
        if path.endswith("/generate"):  # the name is wrong, and the right one is told
            assert f"did you mean {MODEL}/generate?" in reply.error
    reply = ask(url, "GET", f"{MODEL}/generate")
    assert (reply.status, reply.error) == (405, f"{MODEL}/generate takes POST, not GET")


def test_tritonclient_over_http(url: str) -> None:
    """A stock client finds the server and the model alive, ready and described."""
    client = tritonclient.http.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("qwen_mtp")
    assert not client.is_model_ready("nowhere")
    metadata = client.get_model_metadata("qwen_mtp")
    assert metadata["name"] == "qwen_mtp"
    assert {"name": "input_ids", "datatype": "INT32", "shape": [-1]} in metadata["inputs"]
    client.close()


def test_a_client_that_takes_nothing_is_ended_over_http(
    gateway: GatewayThread, doubles: TritonServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its variant is told, and its connection closed."""
    monkeypatch.setattr(sending, "CLIENT_STALL_S", 0.5)
    body = {
        "text_input": prompt(tokens=10**6, word="x" * 50_000, name="slow-http"),
        "streaming": True,
    }
    with sent(url, "POST", f"{MODEL}/generate_stream", body) as response:
        wait_until((doubles.log.parent / "notes" / "cancelled-slow-http").exists)
        wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            response.read()
    # on a slow machine its server is busy with what was not taken, and suspected for a moment
    wait_until(lambda: ask(url, "GET", f"{MODEL}/ready").status == 200)


def test_the_description_is_tritons(url: str, doubles: TritonServer) -> None:
    """The public model has its variants' description under its own name.

    Only what is between the gateway or a rollout and a variant is left out.
    """
    own, tritons = (
        ask(address, "GET", path).json()
        for address, path in ((url, MODEL), (doubles.http_url, f"{MODEL}_k3"))
    )
    for key in ("inputs", "outputs"):
        tritons[key] = [t for t in tritons[key] if t["name"] not in VARIANT_ONLY]
    assert own | {"name": ""} == tritons | {"name": ""}


def test_stopping_finishes_answers_over_http(doubles: TritonServer) -> None:
    """A stopping gateway completes what it has begun and takes nothing more."""
    body = {"text_input": prompt(tokens=15, delay_s=0.02), "streaming": True}
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        address = str(thread.gateway.http_address)
        with sent(address, "POST", f"{MODEL}/generate_stream", body) as response:
            assert response.readline().startswith(b"data: ")
            stopping = thread.run(thread.gateway.stop())
            rest = Reply(200, {}, response.read().lstrip())
            stopping.result(60)
        assert rest.events()[-1]["text_output"] == "w14"
        with pytest.raises(ConnectionRefusedError):
            ask(address, "GET", "/v2/health/live")
        with pytest.raises(grpc.RpcError), grpc.insecure_channel(thread.gateway.address) as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=60)


def test_who_takes_a_little_now_and_then_holds_no_place(
    gateway: GatewayThread, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event is taken in time, and yet its variant is soon free for others."""
    monkeypatch.setattr(sending, "CLIENT_STALL_S", 2.0)
    monkeypatch.setattr(sending, "MAX_WAITING_BYTES", 256 * 1024)
    body = json.dumps(
        {"text_input": prompt(tokens=20_000, word="x" * 1_000), "streaming": True}
    ).encode()
    head = f"POST {MODEL}/generate_stream HTTP/1.1\r\nHost: a\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    host, _, port = url.rpartition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect((host, int(port)))
        client.sendall(head.encode() + body)
        client.recv(1_000)
        running = gateway.gateway.statistics

        def is_free() -> bool:
            with contextlib.suppress(ConnectionError):
                client.recv(4_000)
            return bool(running()["variants"]["k3"]["num_running"] == 0)

        wait_until(is_free)
