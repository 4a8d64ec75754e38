"""Servers that a Service of Kubernetes has: the API is a double, the Tritons are real."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.kubernetes_api import (
    NAMESPACE,
    SERVICE,
    KubernetesApi,
    endpoint_slice,
    kubernetes_api,
)
from trt_mtp.controller.gateway.servers import kubernetes
from trt_mtp.controller.gateway.servers.sources import Server, source_of
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.triton import TritonServer

TRITON = f"kubernetes:{NAMESPACE}/{SERVICE}"


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Another Triton of doubles."""
    with triton_of_doubles(tmp_path_factory.mktemp("second")) as server:
        yield server


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The double of the API, asked again soon after it fails."""
    monkeypatch.setattr(kubernetes, "MAX_RETRY_S", 0.05)
    with kubernetes_api(tmp_path / "account", monkeypatch) as double:
        yield double


def servers(thread: GatewayThread) -> set[str]:
    """The servers that may be sent requests."""
    return set(thread.gateway.pool.backends)


@contextmanager
def traffic(thread: GatewayThread) -> Iterator[list[Any]]:
    """Requests one after the other, two at a time, while this is held; what was answered."""
    answers: list[Any] = []
    is_over = threading.Event()

    def ask() -> None:
        with raw_stream(thread.gateway.address) as stream:
            while not is_over.is_set():
                stream.send(script_request(tokens=1, delay_s=0.01))
                answers.append(stream.receive())

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        yield answers
    finally:
        is_over.set()
        for each in threads:
            each.join(60)
        assert not any(each.is_alive() for each in threads)


def test_servers_come_and_go_without_a_failed_request(
    api: KubernetesApi, doubles: TritonServer, second: TritonServer
) -> None:
    """A server that ends gets nothing new and finishes what it has; a deleted one is gone."""
    api.put("a", doubles.grpc_url)
    with (
        running_gateway(TRITON, Policy(Profile(), seed=1), failover_wait_s=30.0) as thread,
        traffic(thread) as answers,
        raw_stream(thread.gateway.address) as stream,
    ):
        assert servers(thread) == {doubles.grpc_url}
        api.put("b", second.grpc_url, ready=False)
        api.put("a", doubles.grpc_url)
        assert servers(thread) == {doubles.grpc_url}
        api.put("b", second.grpc_url)
        wait_until(lambda: servers(thread) == {doubles.grpc_url, second.grpc_url})
        wait_until(lambda: len(thread.gateway.pool.variants) == 6)
        stream.send(script_request(tokens=20, delay_s=0.05))
        stream.receive()
        api.put("a", doubles.grpc_url, ready=False, serving=True, terminating=True)
        wait_until(lambda: servers(thread) == {second.grpc_url})
        texts = [text_of(stream.receive()) for _ in range(19)]
        assert texts == [f"w{i}" for i in range(1, 20)]
        api.put("a", doubles.grpc_url)
        wait_until(lambda: len(servers(thread)) == 2)
        api.delete("b")
        wait_until(lambda: servers(thread) == {doubles.grpc_url})
        wait_until(lambda: len(answers) > 10)
    assert {text_of(answer) for answer in answers} == {"w0"}


def test_what_the_api_forgot_is_listed_again(
    api: KubernetesApi, doubles: TritonServer, second: TritonServer
) -> None:
    """Whether the watch is told 410 or refused with it; what changed in between is seen."""
    api.put("a", doubles.grpc_url)
    with running_gateway(TRITON) as thread:
        for is_told in (True, False):
            api.put("b", second.grpc_url)
            wait_until(lambda: len(servers(thread)) == 2)
            api.delete("b")
            api.expire(is_told=is_told)
            wait_until(lambda: servers(thread) == {doubles.grpc_url})
            wait_until(lambda: "watch" in api.asked[-1])


def test_a_watch_goes_on_from_the_latest_version(
    api: KubernetesApi, doubles: TritonServer, second: TritonServer
) -> None:
    """That of a bookmark, too: nothing is listed again when a watch has ended as usual."""
    api.put("a", doubles.grpc_url)
    with running_gateway(TRITON) as thread:
        wait_until(lambda: "watch" in api.asked[-1])
        version = api.bookmark()
        api.end_watches()
        wait_until(lambda: api.asked[-1].get("resourceVersion") == str(version))
        assert ["watch" in query for query in api.asked] == [False, True, True]
        assert all(query["allowWatchBookmarks"] == "true" for query in api.asked[1:])
        api.put("b", second.grpc_url)
        wait_until(lambda: len(servers(thread)) == 2)


def test_an_outage_of_the_api_changes_nothing(
    api: KubernetesApi, doubles: TritonServer, second: TritonServer
) -> None:
    """The last set stays and serves; the token is read again, as it is renewed meanwhile."""
    api.put("a", doubles.grpc_url)
    with running_gateway(TRITON, failover_wait_s=30.0) as thread, traffic(thread) as answers:
        wait_until(lambda: "watch" in api.asked[-1])
        with api.outage():
            num_asked, num_answers = len(api.asked), len(answers)
            wait_until(lambda: len(api.asked) > num_asked + 2)
            wait_until(lambda: len(answers) > num_answers + 2)
            assert servers(thread) == {doubles.grpc_url}
            api.token_file.write_text("t1")
            api.put("b", second.grpc_url)
        wait_until(lambda: len(servers(thread)) == 2)
    assert {text_of(answer) for answer in answers} == {"w0"}


def test_why_there_is_no_server_is_said(api: KubernetesApi) -> None:
    """A Service of another name, and an account that may not ask."""
    with (
        pytest.raises(TrtMtpError, match="has no EndpointSlice: is its name right"),
        running_gateway(TRITON, ready_timeout_s=0.5),
    ):
        pass
    with (
        api.outage(),
        pytest.raises(TrtMtpError, match=f"no news of Service {NAMESPACE}/{SERVICE}.*503"),
        running_gateway(TRITON, ready_timeout_s=0.5),
    ):
        pass


def test_outside_of_a_cluster_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do instead."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kubernetes, "ACCOUNT", tmp_path)
    with pytest.raises(InputError, match="not a pod with a service account"):
        source_of(TRITON)
    with pytest.raises(InputError, match="expected HOST:PORT"):
        source_of("kubernetes:no-service")


ENDPOINTS = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), max_size=8)


@given(ENDPOINTS)
def test_slices_are_read_together(endpoints: list[tuple[str, bool, bool]]) -> None:
    """A server is there if a slice says so, unless any slice says that it ends."""
    slices = {}
    for number, (name, ready, terminating) in enumerate(endpoints):
        target = f"10.0.0.{ord(name)}:8001"
        raw = endpoint_slice(f"s{number}", target, "a", ready=ready, terminating=terminating)
        slices[f"s{number}"] = kubernetes._Slice.model_validate(raw)
    ending = {name for name, _, terminating in endpoints if terminating}
    serving = {name for name, is_ready, _ in endpoints if is_ready} - ending
    expected = {Server(f"10.0.0.{ord(name)}:8001", "a") for name in serving}
    assert set(kubernetes.servers_in(slices)) == expected


def test_a_slice_as_go_writes_it() -> None:
    """Empty lists are null, conditions may be missing, a single port needs no name."""
    bare = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": None, "ports": None}
    assert kubernetes.servers_in({"s": kubernetes._Slice.model_validate(bare)}) == []
    one = bare | {"endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "", "port": 1}]}
    assert kubernetes.servers_in({"s": kubernetes._Slice.model_validate(one)}) == [
        Server("10.0.0.1:1")
    ]
    six = one | {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}
    both = {name: kubernetes._Slice.model_validate(each) for name, each in (("4", one), ("6", six))}
    assert kubernetes.servers_in(both) == [Server("10.0.0.1:1")]
    assert kubernetes.servers_in({"6": both["6"]}) == [Server("[fd00::1]:1")]
