"""Several gateway processes on one port, restarts that nobody notices, and the admin port."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conftest import CliResult
from tests.controller.gateway.gateway_process import Process, gateway_process
from tests.controller.gateway.scrape import samples
from tests.gateway_fixtures import (
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.http_client import ask
from trt_mtp.controller.gateway.gateway import GatewayConfig
from trt_mtp.controller.gateway.process import ProcessConfig
from trt_mtp.controller.gateway.workers import reserved_ports
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.processes import is_alive
from trt_mtp.serve.triton import TritonServer

NUM_CLIENTS = 12  # that all come to the same worker once in 2,000 times, and test less then


def answer_one(address: str) -> str:
    """The variant that answers a request on a connection of its own; raises grpc.RpcError."""
    request = script_request(tokens=1, streaming=False)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        raw = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")(
            request.SerializeToString(), timeout=60
        )
    return str(pb.ModelInferResponse.FromString(raw).parameters["variant"].string_param)


def worker_starts(log: str) -> int:
    """How many workers got ready so far."""
    return len(re.findall(r"worker \d \(pid \d+\) is ready", log))


def test_workers_share_the_port_the_load_and_the_metrics(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """A killed worker loses no later request, is replaced, and what it counted is kept."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--http-port", "0", "--workers", "2")
    state, decisions = tmp_path / "state.json", tmp_path / "decisions.jsonl"
    files = ("--state", str(state), "--decision-log", str(decisions))
    with gateway_process(tmp_path / "log", *options, *files) as gateway:
        address, http = gateway.ready["gateway"], gateway.ready["http"]
        assert gateway.ready["openai"] == f"http://{http}/v1"
        pids = gateway.ready["workers"]
        assert len(set(pids)) == 2
        assert "WARNING" not in gateway.log

        def value(name: str) -> float:
            found = samples(ask(http, "GET", "/metrics").body)
            return sum(count for (key, *_), count in found.items() if key == name)

        for _ in range(20):
            assert answer_one(address)
        assert value("requests_total") == 20
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(raw_stream(address)) for _ in range(8)]
            for stream in streams:
                stream.send(script_request(tokens=1000, delay_s=0.02))
                assert text_of(stream.receive()) == "w0"
            assert value("requests_in_flight") == 8
        wait_until(lambda: value("requests_in_flight") == 0)
        os.kill(pids[0], signal.SIGKILL)
        # its sockets are closed when it is reaped, a moment after it counts as dead
        wait_until(lambda: f"(pid {pids[0]}) ended" in gateway.log)
        for _ in range(20):
            assert answer_one(address)
        assert value("requests_total") == 48
        wait_until(lambda: worker_starts(gateway.log) == 3)
        for _ in range(20):
            assert answer_one(address)
        assert gateway.end() == 0
        assert not any(is_alive(pid) for pid in pids)
    assert state.exists()
    assert state.with_name("state-1.json").exists()
    assert sorted(path.name for path in tmp_path.glob("decisions*")) == [
        "decisions-0.jsonl",
        "decisions-1.jsonl",
    ]


def tenants_file(path: Path, **limits: dict[str, float]) -> Path:
    """A file of tenants, the token of each its name."""
    tenants = [
        {"name": name, "token_sha256": [hashlib.sha256(name.encode()).hexdigest()], **of_tenant}
        for name, of_tenant in limits.items()
    ]
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    return path


def try_each(stack: contextlib.ExitStack, gateway: Process, token: str, **script: Any) -> int:
    """Ask on NUM_CLIENTS connections, one after the other; how many got an answer's first word."""
    address, metadata = gateway.ready["gateway"], (("authorization", f"Bearer {token}"),)
    num_admitted = 0
    for _ in range(NUM_CLIENTS):
        stream = stack.enter_context(raw_stream(address, metadata))
        stream.send(script_request(**script))
        response = stream.receive()
        assert response.error_message or text_of(response) == "w0"
        assert not response.error_message or f"tenant {token} may have" in response.error_message
        num_admitted += not response.error_message
    return num_admitted


def test_a_tenant_s_limits_are_those_of_all_workers_together(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """Whichever workers its connections come to; one that dies gives back what it had."""
    tokens = tenants_file(
        tmp_path / "tokens.json",
        streams={"concurrent_streams": 3},
        requests={"requests_per_s": 0.001},
        tokens={"tokens_per_min": 2},
    )
    options = ("--triton", doubles.grpc_url, "--port", "0", "--workers", "2")
    with (
        gateway_process(tmp_path / "log", *options, "--tokens", str(tokens)) as gateway,
        contextlib.ExitStack() as stack,
    ):
        assert try_each(stack, gateway, "streams", tokens=10**6, delay_s=0.05) == 3
        assert try_each(stack, gateway, "requests", tokens=1) == 1
        with contextlib.ExitStack() as first:  # is charged when it is over
            metadata = (("authorization", "Bearer tokens"),)
            stream = first.enter_context(raw_stream(gateway.ready["gateway"], metadata))
            stream.send(script_request(tokens=200))
            assert [text_of(stream.receive()) for _ in range(200)][-1] == "w199"
        assert try_each(stack, gateway, "tokens", tokens=1) == 0
        for pid in gateway.ready["workers"]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: worker_starts(gateway.log) == 4, 60)
        assert try_each(stack, gateway, "streams", tokens=10**6, delay_s=0.05) == 3
        assert try_each(stack, gateway, "requests", tokens=1) == 0


def test_as_many_wait_as_may_at_all_workers_together(tmp_path: Path) -> None:
    """One request more is refused, at whichever worker it comes."""
    options = ("--port", "0", "--http-port", "0", "--workers", "2", "--max-waiting", "2")
    with (
        triton_of_doubles(tmp_path / "triton", max_batch_size=1) as triton,
        gateway_process(tmp_path / "log", "--triton", triton.grpc_url, *options) as gateway,
        contextlib.ExitStack() as stack,
    ):

        def value(name: str) -> float:
            found = samples(ask(gateway.ready["http"], "GET", "/metrics").body)
            return sum(count for (key, *_), count in found.items() if key == name)

        counted = ("requests_in_flight", "requests_waiting", "requests_refused_total")
        for number in range(NUM_CLIENTS):
            stream = stack.enter_context(raw_stream(gateway.ready["gateway"]))
            stream.send(script_request(tokens=10**6, delay_s=0.05))
            wait_until(lambda: sum(map(value, counted)) == number + 1)  # noqa: B023
        assert list(map(value, counted)) == [3, 2, NUM_CLIENTS - 5]
        assert "and 2 requests wait" in stream.receive().error_message


def test_workers_start_again_when_something_removed_their_folder(
    doubles: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that clean /tmp."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    options = ("--triton", doubles.grpc_url, "--port", "0", "--http-port", "0", "--workers", "2")
    with gateway_process(tmp_path / "log", *options) as gateway:
        (folder,) = (tmp_path / "tmp").glob("trt-mtp-gateway-*")
        shutil.rmtree(folder)
        for pid in gateway.ready["workers"]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: worker_starts(gateway.log) == 4, 60)
        assert answer_one(gateway.ready["gateway"])
        metrics = ask(gateway.ready["http"], "GET", "/metrics")
        assert b"trt_mtp_gateway_requests_total" in metrics.body
    assert not folder.exists()


def test_a_restart_loses_no_connection(doubles: TritonServer, tmp_path: Path) -> None:
    """The successor takes the same port before the old gateway ends.

    Every request is answered, at once or when it is sent again: what reaches the old one as it ends
    may be refused.
    """
    common = ("--triton", doubles.grpc_url, "--reuse-port")
    failures: list[str] = []
    is_over = threading.Event()
    num_answered = [0]

    def ask_on(address: str) -> None:
        while not is_over.is_set():
            try:
                with contextlib.suppress(grpc.RpcError):
                    answer_one(address)
                    num_answered[0] += 1
                    continue
                answer_one(address)
            except grpc.RpcError as error:
                failures.append(str(error))

    with gateway_process(tmp_path / "old", *common, "--port", "0") as old:
        address = old.ready["gateway"]
        clients = [threading.Thread(target=ask_on, args=(address,)) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            with raw_stream(address) as stream:
                stream.send(script_request(tokens=30, delay_s=0.02))
                assert text_of(stream.receive()) == "w0"
                port = address.rpartition(":")[2]
                with gateway_process(tmp_path / "new", *common, "--port", port) as new:
                    assert new.ready["gateway"] == address
                    assert old.end() == 0
                    assert [text_of(stream.receive()) for _ in range(29)][-1] == "w29"
                    answered = num_answered[0]
                    wait_until(lambda: num_answered[0] > answered + 10)
                    is_over.set()
                    for client in clients:
                        client.join(60)
        finally:
            is_over.set()
    assert failures == []


def has_ipv6() -> bool:
    """False where this machine has no ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_listens_on_ipv6_as_well(doubles: TritonServer, tmp_path: Path, workers: str) -> None:
    """Its addresses have brackets, as clients need them."""
    options = ("--host", "::1", "--port", "0", "--http-port", "0", "--workers", workers)
    with gateway_process(tmp_path / "log", "--triton", doubles.grpc_url, *options) as gateway:
        assert gateway.ready["gateway"].startswith("[::1]:")
        assert answer_one(gateway.ready["gateway"])
        assert ask(gateway.ready["http"], "GET", "/v2/health/ready").status == 200


def test_a_reserved_port_is_nobody_elses() -> None:
    """Also while no worker listens: another user would get prompts and tokens."""
    config = ProcessConfig(GatewayConfig("127.0.0.1:1", port=0))
    with reserved_ports(config) as reserved, socket.socket() as other, socket.socket() as worker:
        address = (reserved.gateway.host, reserved.gateway.port)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            worker.setsockopt(socket.SOL_SOCKET, option, 1)
        worker.bind(address)
        worker.listen()


def test_a_port_in_use_is_refused_and_a_worker_that_can_not_start_says_why(
    doubles: TritonServer, tmp_path: Path, cli: Callable[..., CliResult]
) -> None:
    """The sentence is the worker's own, the exit code too."""
    taken = doubles.grpc_url.partition(":")[2]
    result = cli("gateway", "--triton", doubles.grpc_url, "--port", taken, "--workers", "2")
    assert (result.code, f"can't listen on 127.0.0.1:{taken}" in result.err) == (2, True)
    options = ("--port", "0", "--admin-port", "65535", "--workers", "2")
    result = cli("gateway", "--triton", doubles.grpc_url, *options)
    assert (result.code, "--admin-port 65535 is too high for 2 workers" in result.err) == (2, True)
    options = ("--port", "0", "--ready-timeout-s", "0.2", "--workers", "2")
    result = cli("gateway", "--triton", "127.0.0.1:1", *options)
    assert result.code == 1
    assert "no Triton answers at 127.0.0.1:1" in result.err
    assert "Traceback" not in result.err


def test_the_admin_port_tells_and_drains(doubles: TritonServer, tmp_path: Path) -> None:
    """Statistics as JSON, metrics without a token, and an end in order."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--admin-port", "0")
    with gateway_process(tmp_path / "log", *options) as gateway:
        admin = gateway.ready["admin"]
        assert admin.startswith("127.0.0.1:")
        assert (gateway.ready["http"], gateway.ready["openai"]) == (None, None)
        answer_one(gateway.ready["gateway"])
        statistics = ask(admin, "GET", "/statistics").json()
        assert statistics["variants"]["k0"]["is_ready"]
        assert sum(task["num_requests"] for task in statistics["tasks"].values()) == 1
        assert b"trt_mtp_gateway_requests_total" in ask(admin, "GET", "/metrics").body
        assert ask(admin, "GET", "/drain").status == 405
        with raw_stream(gateway.ready["gateway"]) as stream:
            stream.send(script_request(tokens=20, delay_s=0.02))
            stream.receive()
            headers = {"TRT-MTP-Admin": "yes"}
            assert ask(admin, "POST", "/drain", headers=headers).json()["draining"]
            assert [text_of(stream.receive()) for _ in range(19)][-1] == "w19"
        assert gateway.process.wait(60) == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "sentence"),
    [
        ("POST", "/drain", {}, "needs the header TRT-MTP-Admin"),  # as a form of another site sends
        ("POST", "/drain", {"TRT-MTP-Admin": "1", "Origin": "http://a.example"}, "Origin"),
        ("GET", "/statistics", {"Host": "a.example"}, "127.0.0.1 or localhost"),  # rebound DNS
        ("GET", "/metrics", {"Host": "127.0.0.1.a.example:80"}, "127.0.0.1 or localhost"),
        ("GET", "/metrics", {"Host": "localhost:1@a.example"}, "127.0.0.1 or localhost"),
    ],
)
def test_the_admin_port_is_not_for_web_pages(
    doubles: TritonServer, method: str, path: str, headers: dict[str, str], sentence: str
) -> None:
    """What a browser on this machine can be made to send is refused, and drains nothing."""
    with running_gateway(doubles.grpc_url, admin_port=0) as thread:
        admin = f"127.0.0.1:{thread.gateway.admin_port}"
        refused = ask(admin, method, path, headers=headers)
        assert refused.status == 403
        assert sentence in refused.json()["error"]
        assert ask(admin, "GET", "/statistics", headers={"Host": "localhost"}).status == 200
        answer_one(thread.gateway.address)


def test_the_admin_port_is_no_public_one(doubles: TritonServer) -> None:
    """Its paths are nowhere on the public port, and it is on this machine's own address."""
    with running_gateway(doubles.grpc_url, http_port=0, admin_port=0) as thread:
        for method, path in (("GET", "/statistics"), ("POST", "/drain")):
            assert ask(thread.gateway.http_address, method, path).status == 404
        assert thread.gateway.describe()["admin"] == f"127.0.0.1:{thread.gateway.admin_port}"
