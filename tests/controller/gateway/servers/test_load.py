"""How busy a variant is, with several gateways before one Triton."""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2 as pb

from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    wait_until,
)
from trt_mtp.controller.gateway.servers import backend
from trt_mtp.controller.outcome import Outcome
from trt_mtp.serve.triton import TritonServer


def load_of(thread: GatewayThread, name: str = "k3") -> int:
    """What a gateway believes to be in flight on a variant."""
    replica = thread.gateway.pool.variants[name]
    return replica.load(replica.health.heard_at)


def test_gateways_see_each_others_requests(doubles: TritonServer) -> None:
    """By the responses to their own ones, within one request; no client sees how they know."""
    with (
        running_gateway(doubles.grpc_url) as one,
        running_gateway(doubles.grpc_url) as other,
        raw_stream(one.gateway.address) as busy,
        raw_stream(other.gateway.address) as stream,
    ):
        for _ in range(5):
            busy.send(script_request(tokens=10**6, delay_s=0.02))
        wait_until(lambda: load_of(one) == 5)
        for outputs in ((), ("text_output",)):
            stream.send(script_request(tokens=3, outputs=outputs))
            answers = [stream.receive() for _ in range(3)]
            assert [text_of(answer) for answer in answers] == ["w0", "w1", "w2"]
            names = {o.name for answer in answers for o in answer.infer_response.outputs}
            assert "requests_in_flight" not in names
            assert ("output_ids" in names) == (not outputs)
            wait_until(lambda: abs(load_of(other) - 5) <= 1)


def test_ten_gateways_agree_on_how_busy_a_server_is(doubles: TritonServer) -> None:
    """Within one request of the truth: seven that have one there, three that had one."""
    deep = {"draft_length": "3"}
    with ExitStack() as stack:
        gateways = [stack.enter_context(running_gateway(doubles.grpc_url)) for _ in range(10)]
        streams = [stack.enter_context(raw_stream(each.gateway.address)) for each in gateways]
        for stream in streams[:7]:
            stream.send(script_request(tokens=10**6, delay_s=0.02, parameters=deep))
            stream.receive()
        for stream in streams[7:]:
            stream.send(script_request(tokens=2, parameters=deep))
            assert [text_of(stream.receive()) for _ in range(2)] == ["w0", "w1"]
        wait_until(lambda: all(abs(load_of(each) - 7) <= 1 for each in gateways))


def test_a_server_that_is_full_is_left_alone(doubles: TritonServer) -> None:
    """Though none of the requests on it are this gateway's."""
    with (
        running_gateway(doubles.grpc_url) as one,
        running_gateway(doubles.grpc_url) as other,
        raw_stream(one.gateway.address) as busy,
        raw_stream(other.gateway.address) as stream,
    ):
        replica = other.gateway.pool.variants["k3"]
        replica.max_batch_size = 4
        for _ in range(4):
            busy.send(script_request(tokens=10**6, delay_s=0.02, parameters={"draft_length": "3"}))
        wait_until(lambda: load_of(one) == 4)
        stream.send(script_request(tokens=2, delay_s=0.01))
        assert [text_of(stream.receive()) for _ in range(2)] == ["w0", "w1"]
        wait_until(lambda: replica.num_running == 0)
        assert load_of(other) >= 4
        assert replica.state(True, replica.health.heard_at).is_full


def test_the_public_model_does_not_have_the_output(doubles: TritonServer) -> None:
    """It is between a variant and the gateway."""
    with running_gateway(doubles.grpc_url) as thread:
        client = grpcclient.InferenceServerClient(thread.gateway.address)
        names = {output.name for output in client.get_model_metadata("qwen_mtp").outputs}
        client.close()
        assert "output_ids" in names
        assert "requests_in_flight" not in names


def test_who_answers_requests_is_not_probed(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other variants on the same server are, again and again."""
    monkeypatch.setattr(backend, "POLL_S", 0.5)
    with running_gateway(doubles.grpc_url) as thread, raw_stream(thread.gateway.address) as stream:
        (server,) = thread.gateway.pool.backends.values()
        own, probed = server.call, Counter[str]()

        async def call(method: str, request: bytes, *more: Any) -> bytes:
            if method == "ModelReady":
                probed[pb.ModelReadyRequest.FromString(request).name] += 1
            return await own(method, request, *more)

        stream.send(script_request(tokens=10**6, delay_s=0.01))
        stream.receive()
        monkeypatch.setattr(server, "call", call)
        wait_until(lambda: probed["qwen_mtp_k0"] >= 4)
        assert probed["qwen_mtp_k3"] < probed["qwen_mtp_k1"] - 1


def test_an_answer_tells_what_ran_beside_it(doubles: TritonServer) -> None:
    """The mean over its time, on its variant and on the server; afterwards nothing is counted."""
    deep, plain = {"draft_length": "3"}, {"draft_length": "0"}
    outcomes: list[Outcome | None] = []
    with running_gateway(doubles.grpc_url) as one:
        one.gateway.router.observers.append(lambda lease: outcomes.append(lease.outcome))
        with raw_stream(one.gateway.address) as busy:
            for parameters in (deep, deep, plain):
                busy.send(script_request(tokens=10**6, delay_s=0.02, parameters=parameters))
            wait_until(lambda: load_of(one) == 2 and load_of(one, "k0") == 1)
            with raw_stream(one.gateway.address) as stream:
                stream.send(script_request(tokens=20, delay_s=0.02, parameters=deep))
                for _ in range(20):
                    stream.receive()
            wait_until(lambda: bool(outcomes))
            outcome = outcomes[0]
        assert outcome is not None
        assert outcome.on_variant is not None
        assert outcome.on_device is not None
        assert outcome.on_variant.requests == pytest.approx(3, abs=0.1)
        assert outcome.on_device.requests == pytest.approx(4, abs=0.1)
        assert outcome.on_device.context_tokens > outcome.on_variant.context_tokens > 0
        variants = one.gateway.pool.variants
        wait_until(lambda: not any(v.num_running for v in variants.values()))
        assert {v.meter.num_tokens for v in variants.values()} == {0.0}
