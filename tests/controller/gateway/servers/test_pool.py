"""Several Triton servers behind one gateway, and servers that come and go."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient

from tests.gateway_fixtures import (
    GatewayThread,
    parameter,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from trt_mtp.controller.gateway import hang_detector
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.controller.gateway.servers import pool, sources
from trt_mtp.controller.gateway.servers.addresses import resolve
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.rollout.triton import ADMIN_HEADER
from trt_mtp.errors import InputError
from trt_mtp.serve.processes import free_ports
from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Another Triton of doubles."""
    with triton_of_doubles(tmp_path_factory.mktemp("second")) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer, second: TritonServer) -> Iterator[GatewayThread]:
    """A gateway before two servers, with the real policy."""
    servers = f"{doubles.grpc_url}, {second.grpc_url}"
    with running_gateway(servers, Policy(Profile(), seed=1)) as thread:
        wait_until(lambda: all(v["is_ready"] for v in variants(thread).values()))
        yield thread


def variants(thread: GatewayThread) -> dict[str, Any]:
    """The variants in a gateway's statistics."""
    found: dict[str, Any] = thread.gateway.statistics()["variants"]
    return found


def test_load_spreads_over_the_servers(
    gateway: GatewayThread, doubles: TritonServer, second: TritonServer
) -> None:
    """Requests in flight together go to both; their responses bear the variant's own name."""
    with raw_stream(gateway.gateway.address) as stream:
        for _ in range(20):
            stream.send(script_request(tokens=10**6, delay_s=0.05))
        wait_until(lambda: sum(v["num_running"] for v in variants(gateway).values()) == 20)
        assert parameter(stream.receive(), "variant") in {"k0", "k1", "k3"}
        running = {key.partition("@")[2]: 0 for key in variants(gateway)}
        for key, variant in variants(gateway).items():
            running[key.partition("@")[2]] += variant["num_running"]
        assert running.keys() == {doubles.grpc_url, second.grpc_url}
        assert min(running.values()) > 0


def test_the_public_model_is_that_of_all_servers(
    gateway: GatewayThread, doubles: TritonServer, second: TritonServer
) -> None:
    """Ready, described and indexed once; its inferences are counted on both servers."""
    client = grpcclient.InferenceServerClient(gateway.gateway.address)
    assert client.is_server_ready()
    assert client.is_model_ready("qwen_mtp")
    assert client.get_model_metadata("qwen_mtp").name == "qwen_mtp"
    names = [model.name for model in client.get_model_repository_index().models]
    assert names == ["qwen_mtp", "qwen_mtp_k0", "qwen_mtp_k1", "qwen_mtp_k3"]

    def count(address: str, names: list[str]) -> int:
        asked = grpcclient.InferenceServerClient(address)
        stats = asked.get_inference_statistics().model_stats
        asked.close()
        return sum(s.inference_count for s in stats if s.name in names)

    def is_counted() -> bool:
        """Triton counts an inference a moment after its last response."""
        by_server = [count(server.grpc_url, names[1:]) for server in (doubles, second)]
        return min(by_server) > 0 and count(gateway.gateway.address, names[:1]) == sum(by_server)

    with raw_stream(gateway.gateway.address) as stream:
        for _ in range(20):
            stream.send(script_request(tokens=1, delay_s=0.2))
        assert {text_of(stream.receive()) for _ in range(20)} == {"w0"}
    wait_until(is_counted)
    found = [s.name for s in client.get_inference_statistics().model_stats]
    assert len(found) == len(set(found))
    client.close()


def test_other_models_pass_to_the_first_server_that_lives(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """What is not the public model has no home; when its server dies, the next one answers."""
    with (
        triton_of_doubles(tmp_path) as mortal,
        running_gateway(f"{mortal.grpc_url},{doubles.grpc_url}") as thread,
    ):
        os.kill(mortal.pid, signal.SIGKILL)
        dead = mortal.grpc_url
        wait_until(lambda: not thread.gateway.pool.backends[dead].is_live)
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request("other", tokens=1))
            assert text_of(stream.receive()) == "w0"


def test_a_request_waits_for_a_variant(doubles: TritonServer) -> None:
    """What comes while no server says that it is ready is answered when one does."""
    with (
        running_gateway(doubles.grpc_url, Policy(Profile()), failover_wait_s=60.0) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        (backend,) = thread.gateway.pool.backends.values()

        async def suspect() -> None:
            backend.suspect()

        os.kill(doubles.pid, signal.SIGSTOP)
        try:
            thread.run(suspect()).result(60)
            stream.send(script_request(tokens=1))
            thread.run(asyncio.sleep(0.3)).result(60)  # it arrives meanwhile
        finally:
            os.kill(doubles.pid, signal.SIGCONT)
        assert text_of(stream.receive()) == "w0"


def test_a_server_that_stops_reading_is_left(
    doubles: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that doesn't get through goes to another server, as after silence."""
    monkeypatch.setattr(hang_detector, "PREFILL_S_PER_TOKEN", 0.0)  # millions of tokens take hours
    stall = StallLimits(factor=1.0, min_s=3.0)
    with triton_of_doubles(tmp_path) as stopped:
        servers = f"{doubles.grpc_url},{stopped.grpc_url}"
        with (
            running_gateway(servers, stall=stall, max_message_bytes=16_000_000) as thread,
            raw_stream(thread.gateway.address) as stream,
        ):
            os.kill(stopped.pid, signal.SIGSTOP)
            padding = "x" * 12_000_000  # more than the connection's windows hold
            request = script_request(tokens=2, outputs=("text_output",), text=padding)
            try:
                stream.send(request)
                assert [text_of(stream.receive()) for _ in range(2)] == ["w0", "w1"]
            finally:
                os.kill(stopped.pid, signal.SIGCONT)


def test_a_server_that_is_down_at_the_start_is_found_later(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """One ready variant is enough to start; what comes later takes part."""
    port = free_ports({"late": 0})["late"]
    with running_gateway(f"{doubles.grpc_url},127.0.0.1:{port}") as thread:
        assert len(variants(thread)) == 3
        with triton_of_doubles(tmp_path, grpc_port=port):
            wait_until(lambda: sum(v["is_ready"] for v in variants(thread).values()) == 6)


def test_a_dns_name_is_all_its_addresses(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers come and go as the name says; when it can't be resolved, nothing changes."""
    port = int(doubles.grpc_url.partition(":")[2])
    addresses: list[str] | None = ["127.0.0.1"]

    own = socket.getaddrinfo

    def resolve(host: str, number: int, *more: Any, **named: Any) -> list[Any]:
        if host != "variants.test":  # somebody else's, in a thread beside
            return own(host, number, *more, **named)
        assert number == port
        if addresses is None:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, number)) for a in addresses]

    monkeypatch.setattr(sources, "RESOLVE_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with running_gateway(f"dns:variants.test:{port}") as thread:
        backends = thread.gateway.pool.backends
        assert set(variants(thread)) == {f"k{k}@127.0.0.1:{port}" for k in (0, 1, 3)}
        addresses = ["127.0.0.1", "127.0.0.2"]
        wait_until(lambda: set(backends) == {f"127.0.0.1:{port}", f"127.0.0.2:{port}"})
        addresses = None
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request(tokens=1))
            assert text_of(stream.receive()) == "w0"
        addresses = ["127.0.0.2"]
        wait_until(lambda: set(backends) == {f"127.0.0.2:{port}"})
        addresses = ["127.0.0.1"]
        wait_until(lambda: any(v["is_ready"] for v in variants(thread).values()))


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ((socket.AF_INET,), ["10.0.0.1:8001"]),
        ((socket.AF_INET6,), ["[fd00::1]:8001"]),
        ((socket.AF_INET6, socket.AF_INET), ["10.0.0.1:8001"]),
    ],
)
def test_a_server_with_addresses_of_both_kinds_is_one(
    monkeypatch: pytest.MonkeyPatch, families: tuple[socket.AddressFamily, ...], expected: list[str]
) -> None:
    """IPv6 addresses count where there are no others."""
    known = {
        socket.AF_INET: ("10.0.0.1", 8001),
        socket.AF_INET6: ("fd00::1", 8001, 0, 0),
    }
    found = [(family, socket.SOCK_STREAM, 6, "", known[family]) for family in families]
    own = socket.getaddrinfo

    def resolved(host: str, *more: Any, **named: Any) -> list[Any]:
        return found if host == "variants.test" else own(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert asyncio.run(asyncio.wait_for(resolve("variants.test", 8001), 60)) == expected


@pytest.mark.parametrize("servers", ["", "nowhere", "a:1,dns:b:2", "http://a:1", "a:b"])
def test_what_names_no_servers_is_refused(servers: str) -> None:
    """The sentence says what is expected."""
    with pytest.raises(InputError, match="expected HOST:PORT"):
        pool.Pool(servers, "qwen_mtp")


def test_a_model_that_is_unloaded_goes(tmp_path: Path) -> None:
    """No stream that answered a request keeps the model, when streams are renewed in between."""
    with triton_of_doubles(tmp_path) as server, running_gateway(server.grpc_url) as thread:
        with raw_stream(thread.gateway.address) as stream:
            for _ in range(150):
                for _ in range(8):
                    stream.send(script_request(tokens=1, parameters={"draft_length": "3"}))
                renewed = thread.run(thread.gateway.pool.look_for(()))
                assert {text_of(stream.receive()) for _ in range(8)} == {"w0"}
                renewed.result(60)
        thread.run(thread.gateway.pool.look_for(())).result(60)
        client = grpcclient.InferenceServerClient(server.grpc_url)
        headers = {ADMIN_HEADER: server.admin_key}
        client.unload_model("qwen_mtp_k3", headers=headers)

        def state() -> str:
            index = client.get_model_repository_index(headers=headers).models
            return {model.name: str(model.state) for model in index}["qwen_mtp_k3"]

        wait_until(lambda: state() == "UNAVAILABLE")
        client.close()
