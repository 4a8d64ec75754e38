"""Who waits when all variants are busy, in which order, and for how long; and slow readers."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.gateway_fixtures import (
    GatewayThread,
    RawStream,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.triton_client import tensor
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.router import Router
from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton whose variants take one request at a time."""
    with triton_of_doubles(tmp_path_factory.mktemp("narrow"), max_batch_size=1) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(narrow: TritonServer) -> Iterator[GatewayThread]:
    """A gateway in which five requests may wait."""
    with running_gateway(narrow.grpc_url, max_waiting=5) as thread:
        yield thread


@pytest.fixture
def stream(gateway: GatewayThread) -> Iterator[RawStream]:
    """A client's stream to it."""
    with raw_stream(gateway.gateway.address) as found:
        yield found


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata with the token of a tenant, which is its name."""
    return (("authorization", f"Bearer {name}"),)


def num_waiting(gateway: GatewayThread) -> int:
    """Requests that wait."""
    return int(gateway.gateway.statistics()["num_waiting"])


def is_waiting(gateway: GatewayThread, number: int) -> bool:
    """Do so many wait?"""
    return num_waiting(gateway) == number


@contextlib.contextmanager
def occupied(gateway: GatewayThread, length: int) -> Iterator[None]:
    """The variant of this draft length has something to do until the end."""
    parameters = {"draft_length": str(length)}
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=10**6, delay_s=0.02, parameters=parameters))
        assert text_of(stream.receive()) == "w0"
        yield


def order_of(stream: RawStream, num_requests: int) -> list[str]:
    """The ids of one-token answers in the order in which they come."""
    return [stream.receive().infer_response.id for _ in range(num_requests)]


def test_priority_comes_before_arrival(stream: RawStream, gateway: GatewayThread) -> None:
    """Triton's priorities: 1 first, then larger numbers; none is 100."""
    with occupied(gateway, 0):
        for name, priority in (("none", 0), ("late", 200), ("one", 1), ("seven", 7), ("again", 1)):
            parameters = {"draft_length": "0"} | ({"priority": priority} if priority else {})
            stream.send(script_request(request_id=name, tokens=1, parameters=parameters))
        wait_until(lambda: num_waiting(gateway) == 5)
    assert order_of(stream, 5) == ["one", "again", "seven", "none", "late"]


def test_a_tenant_comes_no_sooner_than_it_may(
    narrow: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests wait at its highest priority, whatever they ask for."""
    limits: dict[str, dict[str, int]] = {"any": {}, "bulk": {"highest_priority": 150}}
    tenants = [
        {"name": name, "token_sha256": [hashlib.sha256(name.encode()).hexdigest()], **own}
        for name, own in limits.items()
    ]
    file = tmp_path / "tenants.json"
    file.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    placed: list[str] = []
    place = Router.place

    def noted(router: Router, call: InferenceCall) -> Lease | None:
        lease = place(router, call)
        if lease is not None:
            placed.append(call.client_id)
        return lease

    monkeypatch.setattr(Router, "place", noted)
    with (
        running_gateway(narrow.grpc_url, access=AccessConfig(tokens=file)) as thread,
        raw_stream(thread.gateway.address, bearer("any")) as one,
        raw_stream(thread.gateway.address, bearer("bulk")) as other,
    ):
        with raw_stream(thread.gateway.address, bearer("any")) as busy:
            first = script_request(tokens=10**6, delay_s=0.02, parameters={"draft_length": "0"})
            busy.send(first)
            busy.receive()
            sent = (
                (other, "bulk 1", 1),
                (other, "bulk 200", 200),
                (one, "any", 0),
                (one, "low", 160),
            )
            for number, (stream, name, priority) in enumerate(sent, 1):
                parameters = {"draft_length": "0"} | ({"priority": priority} if priority else {})
                stream.send(script_request(request_id=name, tokens=1, parameters=parameters))
                wait_until(partial(is_waiting, thread, number))
        for stream in (one, other):
            order_of(stream, 2)
    assert placed[1:] == ["any", "bulk 1", "low", "bulk 200"]


def test_a_request_waits_for_no_variant_but_its_own(
    stream: RawStream, gateway: GatewayThread
) -> None:
    """Those that wait for one draft length don't hold up another's, or who takes any."""
    with occupied(gateway, 0):
        for name, length in (("waits", "0"), ("one", "1"), ("any", "auto")):
            parameters = {"draft_length": length}
            stream.send(script_request(request_id=name, tokens=1, parameters=parameters))
        assert set(order_of(stream, 2)) == {"one", "any"}
    assert order_of(stream, 1) == ["waits"]


def test_one_more_than_may_wait_is_refused_at_once(
    stream: RawStream, gateway: GatewayThread
) -> None:
    """The refusal names the limit, as an error of the stream or as a status."""
    parameters = {"draft_length": "0"}
    with occupied(gateway, 0):
        for index in range(5):
            stream.send(script_request(request_id=str(index), tokens=1, parameters=parameters))
        wait_until(lambda: num_waiting(gateway) == 5)
        client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
        inputs = [tensor("text_input", '{"tokens": 1}')]
        with pytest.raises(InferenceServerException, match="5 requests wait") as refused:
            client.infer("qwen_mtp", inputs, parameters=parameters)
        assert "RESOURCE_EXHAUSTED" in str(refused.value.status())
        client.close()
        stream.send(script_request(request_id="refused", tokens=1, parameters=parameters))
        assert order_of(stream, 1) == ["refused"]
    assert order_of(stream, 5) == ["0", "1", "2", "3", "4"]


def test_a_request_whose_time_is_over_is_never_sent(
    stream: RawStream, gateway: GatewayThread
) -> None:
    """Triton's `timeout`, and the call's own deadline, bound the waiting."""
    with occupied(gateway, 0):
        sent = len(gateway.policy.seen)
        parameters = {"draft_length": "0", "timeout": 100_000}
        stream.send(script_request(request_id="late", tokens=1, parameters=parameters))
        assert "time was over" in stream.receive().error_message
        client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
        with pytest.raises(InferenceServerException, match=r"[Dd]eadline|time was over"):
            client.infer(
                "qwen_mtp",
                [tensor("text_input", '{"tokens": 1}')],
                parameters={"draft_length": "0"},
                client_timeout=0.2,
            )
        client.close()
        wait_until(lambda: num_waiting(gateway) == 0)
    assert len(gateway.policy.seen) == sent


def test_who_leaves_while_waiting_is_gone(stream: RawStream, gateway: GatewayThread) -> None:
    """A client that vanishes leaves its place in the line to others, and takes no slot."""
    parameters = {"draft_length": "0"}
    with occupied(gateway, 0):
        sent = len(gateway.policy.seen)
        with raw_stream(gateway.gateway.address) as leaving:
            for _ in range(2):
                leaving.send(script_request(tokens=1, parameters=parameters))
            wait_until(lambda: num_waiting(gateway) == 2)
        wait_until(lambda: num_waiting(gateway) == 0)
        stream.send(script_request(request_id="next", tokens=1, parameters=parameters))
        wait_until(lambda: num_waiting(gateway) == 1)
    assert order_of(stream, 1) == ["next"]
    assert len(gateway.policy.seen) == sent + 1


def test_a_full_server_is_not_the_end_of_what_waits(narrow: TritonServer, tmp_path: Any) -> None:
    """A variant that comes while requests wait takes them, though no answer ended."""
    with (
        triton_of_doubles(tmp_path, max_batch_size=1) as late,
        running_gateway(f"{narrow.grpc_url},{late.grpc_url}") as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        backend = thread.gateway.pool.backends[late.grpc_url]
        for variant in backend.variants.values():
            variant.num_running = 1
        parameters = {"draft_length": "0"}
        with occupied(thread, 0):
            stream.send(script_request(request_id="waits", tokens=1, parameters=parameters))
            wait_until(lambda: num_waiting(thread) == 1)
            for variant in backend.variants.values():
                variant.num_running = 0
            assert order_of(stream, 1) == ["waits"]


def test_a_reader_that_stops_stops_its_own_upstream(gateway: GatewayThread) -> None:
    """What a client doesn't read is not read from Triton either; nobody else waits for it."""
    num_tokens, word = 2_000, "x" * 20_000
    detector = gateway.gateway.detector
    with raw_stream(gateway.gateway.address) as slow, raw_stream(gateway.gateway.address) as quick:
        slow.send(script_request(tokens=num_tokens, word=word, parameters={"draft_length": "0"}))
        wait_until(lambda: bool(detector.leases()))
        [call] = [lease.call for lease in detector.leases()]
        wait_until(lambda: len(call.emitted) > 0)
        before = -1
        while before != len(call.emitted):  # until it stands still
            before = len(call.emitted)
            time.sleep(0.5)
        assert 0 < before < 4 * num_tokens / 2
        quick.send(script_request(tokens=3, parameters={"draft_length": "1"}))
        assert [text_of(quick.receive()) for _ in range(3)] == ["w0", "w1", "w2"]
        texts = [text_of(slow.receive()) for _ in range(num_tokens)]
    assert texts[-1] == f"{word}{num_tokens - 1}"
