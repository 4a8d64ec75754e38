"""Real variants whose processes and servers die: the answers are the undisturbed ones."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_fixtures import GatewayThread, running_gateway
from tests.programs import command_line
from tests.triton_client import Response, Stream, streaming, text_of
from tests.variants import build_engines
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

SAMPLED = {"sampling_param_temperature": 0.9, "sampling_param_seed": 11}
IDS = ("text_output", "output_ids", "num_output_tokens", "finish_reason")
NUM_TOKENS = 1_500
SEEN = 40  # messages before the fault


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants with draft lengths 0 and 3, eight requests at a time."""
    return build_engines(tmp_path_factory.mktemp("engines"), (0, 3), max_batch_size=8)


@pytest.fixture(scope="module")
def steady(engines: Path) -> Iterator[TritonServer]:
    """A server that stays."""
    with serving(resolve_variants([engines])) as running:
        yield running


@pytest.fixture(scope="module")
def requests(steady: TritonServer) -> dict[str, dict[str, Any]]:
    """Requests by id: greedy and sampled, with text only, a stop text near the end, a grammar."""
    common = {
        "text_input": "def fibonacci(n):",
        "streaming": True,
        "sampling_param_max_tokens": NUM_TOKENS,
        "sampling_param_exclude_input_from_output": False,
    }
    greedy = {**common, "sampling_param_temperature": 0.0}
    sampled = {**common, **SAMPLED}
    with streaming(steady.grpc_url) as stream:
        whole = text_of(stream.ask("qwen_mtp_k0", **sampled))
    at = len(whole) * 9 // 10
    stop = whole[at : at + 12]
    return {
        "greedy": {**greedy, "outputs": IDS},
        "sampled": {**sampled, "outputs": IDS},
        "text only": {**sampled, "outputs": ("text_output",)},
        "stopped": {**sampled, "outputs": IDS, "sampling_param_stop": stop},
        "guided": {**sampled, "outputs": IDS, "guided_decoding": '{"regex": "[a-z ]{9000,}"}'},
    }


@pytest.fixture(scope="module")
def undisturbed(
    steady: TritonServer, requests: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What the requests' answers come to, from a variant asked directly."""
    with streaming(steady.grpc_url) as stream:
        found = {
            name: summary(stream.ask("qwen_mtp_k0", **request))
            for name, request in requests.items()
        }
    assert found["stopped"]["finish_reason"] == [b"stop"]
    assert len(found["greedy"]["ids"]) == NUM_TOKENS
    return found


def summary(responses: list[Response]) -> dict[str, Any]:
    """All that the outputs of an answer say together."""
    assert not responses[-1].error, responses[-1].error
    found: dict[str, Any] = {"text": text_of(responses), "ids": []}
    for response in responses:
        found["ids"] += response.outputs.get("output_ids", [])
        for name in ("num_output_tokens", "finish_reason"):
            if name in response.outputs:
                assert name not in found, f"{name} came twice"
                found[name] = response.outputs[name]
    return found


def stub_of(server: TritonServer, model: str) -> int:
    """The process of a model."""
    for pid in server.stub_pids:
        if f"/{model}/".encode() in command_line(pid):
            return pid
    raise AssertionError(f"{model} has no process")


def server_pid(server: TritonServer) -> int:
    """The process of a server."""
    return server.pid


def k3_pid(server: TritonServer) -> int:
    """The process of the variant that the tests' policy prefers."""
    return stub_of(server, "qwen_mtp_k3")


def send_all(stream: Stream, requests: dict[str, dict[str, Any]]) -> None:
    """Send all requests at once, under their names."""
    for name, request in requests.items():
        stream.send("qwen_mtp", request_id=name, **request)


def begin_elsewhere(gateway: GatewayThread, busy: TritonServer) -> None:
    """Requests that are sent soon begin on the other server: this one is believed to be busy."""
    for replica in gateway.gateway.pool.backends[busy.grpc_url].variants.values():
        replica.others.note(replica.max_batch_size - 1, 0, time.monotonic())


def receive_all(stream: Stream, names: set[str], fault: Callable[[], None]) -> dict[str, Any]:
    """Receive all answers; the fault is injected after the first `SEEN` messages."""
    answers: dict[str, list[Response]] = {name: [] for name in names}
    left, count = set(names), 0
    while left:
        response = stream.receive()
        assert not response.error, response.error
        answers[response.request_id].append(response)
        if response.is_final:
            left.discard(response.request_id)
        count += 1
        if count == SEEN:
            fault()
    return answers


@pytest.mark.parametrize("victim", [k3_pid, server_pid])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_answers_survive_what_happens_to_their_variant(
    steady: TritonServer,
    engines: Path,
    requests: dict[str, dict[str, Any]],
    undisturbed: dict[str, dict[str, Any]],
    victim: Callable[[TritonServer], int],
    number: signal.Signals,
) -> None:
    """Killed or stopped, process or server: every answer is whole, token for token."""
    stall = StallLimits(factor=1.0, min_s=1.5)
    with serving(resolve_variants([engines])) as mortal:
        pid = victim(mortal)
        try:
            servers = f"{steady.grpc_url},{mortal.grpc_url}"
            with (
                running_gateway(servers, stall=stall) as gateway,
                streaming(gateway.gateway.address) as stream,
            ):
                begin_elsewhere(gateway, steady)
                send_all(stream, requests)
                answers = receive_all(stream, set(requests), lambda: os.kill(pid, number))
                statistics = gateway.gateway.statistics()
        finally:
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.1)
    assert {name: summary(responses) for name, responses in answers.items()} == undisturbed
    # where all is slow, one may have been whole before the fault
    assert sum(task["num_failed_over"] for task in statistics["tasks"].values()) > 0
    assert sum(task["num_failed"] for task in statistics["tasks"].values()) == 0


def test_the_told_seed_gives_the_whole_answer_again(
    steady: TritonServer, engines: Path, requests: dict[str, dict[str, Any]]
) -> None:
    """Who sends no seed is told one that holds on both sides of the seam."""
    unseeded = {**requests["sampled"], "outputs": (*IDS, "seed")}
    del unseeded["sampling_param_seed"]
    with serving(resolve_variants([engines])) as mortal:
        pid = k3_pid(mortal)
        servers = f"{steady.grpc_url},{mortal.grpc_url}"
        with running_gateway(servers) as gateway, streaming(gateway.gateway.address) as stream:
            begin_elsewhere(gateway, steady)
            for name in ("one", "two", "three", "four"):
                stream.send("qwen_mtp", request_id=name, **unseeded)
            names = {"one", "two", "three", "four"}
            answers = receive_all(stream, names, lambda: os.kill(pid, signal.SIGKILL))
            statistics = gateway.gateway.statistics()
    assert sum(task["num_failed_over"] for task in statistics["tasks"].values()) > 0
    told = [responses_seed(responses) for responses in answers.values()]
    assert len(set(told)) == len(told)
    with streaming(steady.grpc_url) as stream:
        for seed, responses in zip(told, answers.values(), strict=True):
            again = {**requests["sampled"], "sampling_param_seed": seed}
            assert summary(stream.ask("qwen_mtp_k0", **again)) == summary(responses)


def responses_seed(responses: list[Response]) -> int:
    """The seed that an answer tells."""
    (seed,) = [seed for response in responses for seed in response.outputs.get("seed", [])]
    return int(seed)
