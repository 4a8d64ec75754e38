"""Answers that go on with another variant: doubles that fail at exact places, one real Triton."""

import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway_fixtures import (
    GatewayThread,
    RawStream,
    is_last,
    parameter,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
)
from tests.triton_client import tensor
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.controller.gateway.retry_budget import RetryBudget
from trt_mtp.controller.gateway.servers.health import Health
from trt_mtp.serve.processes import is_alive
from trt_mtp.serve.triton import TritonServer

TEXT = ("text_output",)
QUICK = StallLimits(factor=1.0, min_s=1.5)  # less, and a busy machine seems to hang


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """A gateway that gives up a silent variant soon."""
    with running_gateway(doubles.grpc_url, stall=QUICK) as thread:
        yield thread


@pytest.fixture
def stream(gateway: GatewayThread) -> Iterator[RawStream]:
    """A client's stream to it; no variant is left ejected by an earlier test."""
    heal(gateway)
    with raw_stream(gateway.gateway.address) as found:
        yield found


def heal(gateway: GatewayThread) -> None:
    """Forget what made variants ejected."""
    for variant in gateway.gateway.pool.variants.values():
        variant.health = Health()
        variant.health.poll(True, time.monotonic())


def answer(stream: RawStream) -> list[Any]:
    """All responses of one request."""
    responses = [stream.receive()]
    while not is_last(responses[-1]):
        responses.append(stream.receive())
    return responses


def texts(responses: list[Any]) -> list[str]:
    """The texts of the responses that have one."""
    return [text_of(r) for r in responses if r.infer_response.outputs]


@given(
    tokens=st.integers(1, 8),
    first=st.integers(0, 7),
    second=st.integers(0, 7),
    outputs=st.sampled_from([(), TEXT, ("text_output", "output_ids", "num_output_tokens")]),
    with_final=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_variants_fail_the_answer_is_whole(
    stream: RawStream,
    gateway: GatewayThread,
    tokens: int,
    first: int,
    second: int,
    outputs: tuple[str, ...],
    with_final: bool,
) -> None:
    """Any number of seams anywhere: every token once, in order, under the client's id."""
    heal(gateway)
    stream.send(
        script_request(
            request_id="mine",
            tokens=tokens,
            outputs=outputs,
            error_at={"3": first, "1": second},
            error_with_final=with_final,
        )
    )
    responses = answer(stream)
    assert texts(responses) == [f"w{i}" for i in range(tokens)]
    assert {r.infer_response.id for r in responses} == {"mine"}
    assert {r.infer_response.model_name for r in responses} == {"qwen_mtp"}
    left = ["k3"] * (first < tokens) + ["k1"] * (first < tokens and first <= second < tokens)
    assert parameter(responses[-1], "failed_over") == ",".join(left)
    assert parameter(responses[-1], "variant") == ("k3", "k1", "k0")[len(left)]
    names = {output.name for r in responses for output in r.infer_response.outputs}
    assert names == set(outputs) if outputs else names >= {"output_ids", "num_steps"}
    decision, outcome = gateway.outcomes[-1]
    assert outcome.num_output_tokens == tokens
    assert outcome.num_steps == tokens - max([0, *(seam for seam in (first, second)[: len(left)])])
    assert (outcome.ttft_s is None) == bool(left)
    assert decision.variant == ("k3", "k1", "k0")[len(left)]
    assert outcome.finish_reason == "length"


def test_one_of_several_answers_on_a_stream_goes_elsewhere(stream: RawStream) -> None:
    """The others don't notice."""
    stream.send(script_request(request_id="a", tokens=20, outputs=TEXT, delay_s=0.01))
    stream.send(script_request(request_id="b", tokens=20, error_at={"3": 10}, delay_s=0.01))
    stream.send(script_request(request_id="c", tokens=20, delay_s=0.01))
    seen: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    while not all(responses and is_last(responses[-1]) for responses in seen.values()):
        response = stream.receive()
        seen[response.infer_response.id].append(response)
    for name, responses in seen.items():
        assert texts(responses) == [f"w{i}" for i in range(20)]
        assert parameter(responses[-1], "failed_over") == ("k3" if name == "b" else "")
        variants = [parameter(response, "variant") for response in responses]
        assert variants == ["k3"] * 10 + ["k1" if name == "b" else "k3"] * 10


@pytest.mark.parametrize("is_raw", [True, False])
def test_an_answer_that_its_client_took_up_again_goes_elsewhere(
    stream: RawStream, is_raw: bool
) -> None:
    """Tokens that the client brought and those that came since go on together."""
    request = script_request(tokens=8, error_at={"3": 5})
    request.inputs.add(name="emitted_ids", datatype="INT32", shape=[2])
    if is_raw:
        request.raw_input_contents.append(struct.pack("<2i", 0, 1))
    else:
        texts_in_form = [content[4:] for content in request.raw_input_contents[:1]]
        request.inputs[0].contents.bytes_contents.extend(texts_in_form)
        request.inputs[1].contents.bool_contents.append(True)
        request.inputs[2].contents.int_contents.extend([0, 1])
        del request.raw_input_contents[:]
    stream.send(request)
    responses = answer(stream)
    assert texts(responses) == [f"w{i}" for i in range(2, 8)]
    assert parameter(responses[-1], "failed_over") == "k3"


@pytest.mark.parametrize("at", [0, 2])
def test_a_variant_that_hangs_is_left(
    stream: RawStream, gateway: GatewayThread, doubles: TritonServer, at: int
) -> None:
    """Silence ends in another variant's answer, and the silent one is told and left alone."""
    before = gateway.gateway.statistics()["tasks"]["qa"]["num_failed_over"]
    stream.send(script_request(tokens=4, hang_at={"3": at}, name=f"hung-{at}", outputs=TEXT))
    responses = answer(stream)
    assert texts(responses) == ["w0", "w1", "w2", "w3"]
    assert parameter(responses[-1], "failed_over") == "k3"
    wait_until((doubles.log.parent / "notes" / f"cancelled-hung-{at}").exists)
    statistics = gateway.gateway.statistics()
    assert statistics["variants"]["k3"]["is_ejected"]
    assert statistics["tasks"]["qa"]["num_failed_over"] == before + 1
    stream.send(script_request(tokens=1))
    assert parameter(stream.receive(), "variant") == "k1"


@pytest.mark.parametrize("is_empty_final_wanted", [False, True])
def test_an_answer_that_lacks_only_its_end_is_ended_here(
    stream: RawStream, gateway: GatewayThread, is_empty_final_wanted: bool
) -> None:
    """All tokens came, the last message doesn't: nobody else is asked."""
    wanted = {"triton_enable_empty_final_response": is_empty_final_wanted}
    seen, before = len(gateway.policy.seen), len(gateway.outcomes)
    stream.send(
        script_request(tokens=3, separate_final=True, hang_at=3, outputs=TEXT, parameters=wanted)
    )
    assert [text_of(stream.receive()) for _ in range(3)] == ["w0", "w1", "w2"]
    if is_empty_final_wanted:
        final = stream.receive()
        assert is_last(final)
        assert parameter(final, "variant") == "k3"
    wait_until(lambda: len(gateway.outcomes) > before)
    wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)
    assert len(gateway.policy.seen) == seen + 1
    assert gateway.outcomes[-1][1].finish_reason == "length"


def test_a_draft_length_that_was_asked_for_gives_way_to_the_answer(stream: RawStream) -> None:
    """The answer is the same at any length: a hint binds while its variant works."""
    hint = {"draft_length": 0}
    stream.send(script_request(tokens=3, error_at={"0": 1}, parameters=hint))
    responses = answer(stream)
    assert texts(responses) == ["w0", "w1", "w2"]
    assert [parameter(response, "variant") for response in responses] == ["k0", "k3", "k3"]


def test_a_single_answer_is_asked_for_again(stream: RawStream, gateway: GatewayThread) -> None:
    """ModelInfer goes to another variant as a whole."""
    client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
    script = '{"tokens": 4, "error_at": {"3": 2}}'
    result = client.infer("qwen_mtp", [tensor("text_input", script)])
    assert result.as_numpy("text_output").tolist() == [b"w3"]
    assert result.get_response().parameters["failed_over"].string_param == "k3"
    client.close()


def test_what_is_wrong_in_the_request_is_not_tried_again(
    stream: RawStream, gateway: GatewayThread
) -> None:
    """Triton's refusal of wrong tensors reaches the client at once and ejects nobody."""
    wrong = script_request(request_id="Stub process")
    wrong.inputs[0].shape[0] = 5
    seen = len(gateway.policy.seen)
    for _ in range(5):
        stream.send(wrong)
        assert "unexpected shape" in stream.receive().error_message
    assert len(gateway.policy.seen) == seen + 5
    assert not gateway.gateway.statistics()["variants"]["k3"]["is_ejected"]


def test_a_client_that_leaves_while_its_answer_moves_frees_its_slot(
    stream: RawStream, gateway: GatewayThread, doubles: TritonServer
) -> None:
    """Cancellation reaches whichever variant has the request by then."""

    def running() -> dict[str, int]:
        found = gateway.gateway.statistics()["variants"]
        return {key: variant["num_running"] for key, variant in found.items()}

    with raw_stream(gateway.gateway.address) as leaving:
        leaving.send(script_request(outputs=TEXT, tokens=3, hang_at=1, name="moved"))
        assert text_of(leaving.receive()) == "w0"
        wait_until(lambda: running() == {"k0": 0, "k1": 1, "k3": 0})
    wait_until(lambda: sum(running().values()) == 0)
    wait_until(lambda: gateway.outcomes[-1][1].finish_reason == "cancelled")
    wait_until((doubles.log.parent / "notes" / "cancelled-moved").exists)


def test_when_all_variants_fail_the_client_is_told(stream: RawStream) -> None:
    """After three attempts in a row that gave no token the error is the answer."""
    stream.send(script_request(request_id="r", tokens=3, error_at=1))
    responses = answer(stream)
    assert texts(responses[:-1]) == ["w0"]
    assert responses[-1].error_message == "internal error: the engine broke"
    assert responses[-1].infer_response.id == "r"


def test_without_a_budget_errors_pass(doubles: TritonServer) -> None:
    """An empty retry budget turns failures into today's errors."""
    with running_gateway(doubles.grpc_url) as thread, raw_stream(thread.gateway.address) as stream:
        thread.gateway.proxy.retries = Empty()
        stream.send(script_request(tokens=3, error_at={"3": 1}))
        assert text_of(stream.receive()) == "w0"
        assert stream.receive().error_message == "internal error: the engine broke"


class Empty(RetryBudget):
    """Allows nothing."""

    def take(self, now_s: float | None = None) -> bool:
        return False


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=300))
def test_retries_are_a_share_of_requests(steps: list[tuple[bool, float]]) -> None:
    """Whatever comes, retries stay within what was full at first, the requests' share and time."""
    now_s, num_requests, num_retries = 0.0, 0, 0
    budget = RetryBudget()
    for is_request, seconds in steps:
        now_s += seconds
        if is_request:
            budget.request(now_s)
            num_requests += 1
        else:
            num_retries += budget.take(now_s)
    bound = RetryBudget.CAPACITY + RetryBudget.SHARE * num_requests + RetryBudget.PER_S * now_s
    assert num_retries <= bound


def test_a_budget_runs_out_and_comes_back() -> None:
    """After the burst only time and requests bring more."""
    budget = RetryBudget()
    assert sum(budget.take(0.0) for _ in range(2_000)) == RetryBudget.CAPACITY
    assert sum(budget.take(1.0) for _ in range(100)) == RetryBudget.PER_S
    for _ in range(11):
        budget.request(1.0)
    assert sum(budget.take(1.0) for _ in range(100)) == 2


def test_a_dead_process_is_noticed_by_the_next_request(tmp_path_factory: Any) -> None:
    """Triton says nothing to those in flight when a model's process dies; a later error does."""
    with (
        triton_of_doubles(tmp_path_factory.mktemp("dies")) as triton,
        running_gateway(triton.grpc_url, stall=StallLimits(min_s=60.0)) as thread,
        raw_stream(thread.gateway.address) as stream,
    ):
        stream.send(script_request(request_id="a", tokens=50, hang_at={"3": 1}, outputs=TEXT))
        stream.receive()
        stream.send(script_request(request_id="b", tokens=2, die_at={"3": 1}, outputs=TEXT))
        while stream.receive().infer_response.id != "b":
            pass
        wait_until(lambda: not all(is_alive(pid) for pid in triton.stub_pids))
        seen: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
        stream.send(script_request(request_id="c", tokens=2, outputs=TEXT))
        while not all(responses and is_last(responses[-1]) for responses in seen.values()):
            response = stream.receive()
            seen[response.infer_response.id].append(response)
        for responses in seen.values():
            assert parameter(responses[-1], "failed_over").startswith("k3")
            assert not responses[-1].error_message
        assert texts(seen["a"])[-1] == "w49"
