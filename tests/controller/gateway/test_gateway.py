"""Requests through the gateway to a real Triton whose variants are doubles."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tests.gateway_fixtures import (
    GatewayThread,
    parameter,
    raw_stream,
    running_gateway,
    script_request,
    text_of,
    wait_until,
)
from tests.triton_client import streaming, tensor
from trt_mtp.controller.decision import Decision
from trt_mtp.controller.outcome import Outcome
from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.triton import TritonServer

COUNTERS = {"num_steps", "num_draft_tokens", "num_accepted_draft_tokens", "accepted_per_position"}


def learned(gateway: GatewayThread) -> list[tuple[Decision, Outcome]]:
    """What the policy was told, with what is learned soon after."""
    policy = gateway.policy
    wait_until(lambda: len(policy.outcomes) == len(policy.seen))
    return list(policy.outcomes)


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway for the tests that leave it running."""
    with running_gateway(doubles.grpc_url) as thread:
        yield thread


@pytest.fixture
def url(gateway: GatewayThread) -> str:
    """Where the gateway listens."""
    return gateway.gateway.address


def test_a_stock_client_gets_its_answer_and_learns_who_gave_it(url: str) -> None:
    """Every response bears the public name, the variant, the task and the decision."""
    with raw_stream(url) as stream:
        stream.send(script_request(request_id="r1", tokens=3, parameters={"task": "math"}))
        responses = [stream.receive() for _ in range(3)]
    assert [text_of(response) for response in responses] == ["w0", "w1", "w2"]
    for response in responses:
        assert response.infer_response.model_name == "qwen_mtp"
        assert response.infer_response.id == "r1"
        assert parameter(response, "variant") == "k3"
        assert parameter(response, "task") == "math"
    assert len({parameter(response, "decision_id") for response in responses}) == 1


def test_the_outcome_reaches_the_policy(gateway: GatewayThread) -> None:
    """The counters of the last response are what the policy learns from."""
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=5))
        decision_id = parameter([stream.receive() for _ in range(5)][-1], "decision_id")
    decision, outcome = learned(gateway)[-1]
    assert decision.decision_id == decision_id
    assert (outcome.num_steps, outcome.num_draft_tokens) == (5, 15)
    assert outcome.accepted_per_position == (1, 1, 1)
    assert outcome.num_output_tokens == 5
    assert outcome.finish_reason == "length"
    assert outcome.ttft_s is not None
    assert 0 <= outcome.ttft_s <= outcome.duration_s


@pytest.mark.parametrize("separate_final", [False, True])
def test_a_client_gets_the_outputs_that_it_named_and_no_others(
    gateway: GatewayThread, separate_final: bool
) -> None:
    """The gateway asks for counters and keeps them to itself."""
    wanted = ("text_output", "num_steps")
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(outputs=wanted, tokens=2, separate_final=separate_final))
        first, last = stream.receive(), stream.receive()
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.receive()
    assert [output.name for output in first.infer_response.outputs] == ["text_output"]
    assert {output.name for output in last.infer_response.outputs} == set(wanted)
    assert len(last.infer_response.raw_output_contents) == 2
    assert learned(gateway)[-1][1].num_draft_tokens == 6


def test_a_client_that_names_no_outputs_gets_all(url: str) -> None:
    """Naming none means all, the counters among them."""
    with raw_stream(url) as stream:
        stream.send(script_request(tokens=1))
        names = {output.name for output in stream.receive().infer_response.outputs}
    assert names >= COUNTERS | {"text_output", "finish_reason", "num_output_tokens"}


@pytest.mark.parametrize("is_wanted", [False, True])
def test_empty_final_responses_go_to_those_who_want_them(url: str, is_wanted: bool) -> None:
    """The gateway always asks for them and passes them on only to clients that did too."""
    parameters = {"triton_enable_empty_final_response": True} if is_wanted else {}
    with raw_stream(url) as stream:
        stream.send(script_request(tokens=1, separate_final=True, parameters=parameters))
        stream.send(script_request(request_id="next", tokens=1))
        responses = [stream.receive() for _ in range(3 if is_wanted else 2)]
    empty = [r for r in responses if not r.infer_response.outputs]
    assert len(empty) == is_wanted
    for response in empty:
        assert response.infer_response.parameters["triton_final_response"].bool_param
        assert parameter(response, "variant") == "k3"


def test_each_request_of_a_stream_is_routed_on_its_own(url: str) -> None:
    """Interleaved requests of one stream go to several variants, and each gets its own answer."""
    lengths = {f"r{i}": (0, 1, 3)[i % 3] for i in range(12)}
    texts: dict[str, list[str]] = {name: [] for name in lengths}
    variants: dict[str, set[str]] = {name: set() for name in lengths}
    with raw_stream(url) as stream:
        for name, length in lengths.items():
            hints = {"draft_length": length if length else str(length)}
            stream.send(script_request(request_id=name, parameters=hints, tokens=4, delay_s=0.01))
        for _ in range(4 * len(lengths)):
            response = stream.receive()
            texts[response.infer_response.id].append(text_of(response))
            variants[response.infer_response.id].add(parameter(response, "variant"))
    assert texts == {name: ["w0", "w1", "w2", "w3"] for name in lengths}
    assert variants == {name: {f"k{length}"} for name, length in lengths.items()}


@pytest.mark.parametrize("request_id", ["", "same"])
def test_ids_that_tell_nothing_apart_come_back_unchanged(url: str, request_id: str) -> None:
    """Requests without an id, or in flight with the same one, are still told apart upstream."""
    with raw_stream(url) as stream:
        for length in (0, 1, 3):
            hints = {"draft_length": length}
            stream.send(
                script_request(request_id=request_id, parameters=hints, tokens=2, delay_s=0.02)
            )
        responses = [stream.receive() for _ in range(6)]
    assert {response.infer_response.id for response in responses} == {request_id}
    found = sorted(parameter(response, "variant") for response in responses)
    assert found == ["k0", "k0", "k1", "k1", "k3", "k3"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"draft_lenght": 3}, "parameter 'draft_lenght'; did you mean draft_length?"),
        ({"draft_length": 2}, "draft_length is '2': expected auto or a hosted draft length"),
        ({"draft_length": "-1"}, "draft_length is '-1'"),
        ({"draft_length": True}, "draft_length is 'True'"),
        ({"task": "codding"}, "did you mean coding?"),
        ({"task": 7}, "task is '7', not a known task"),
        ({"tenant": "x" * 300}, "tenant has to be a text of at most 256 characters"),
    ],
)
def test_wrong_parameters_are_refused_and_the_stream_goes_on(
    url: str, parameters: dict[str, object], message: str
) -> None:
    """One refused request costs the others of its stream nothing."""
    with raw_stream(url) as stream:
        stream.send(script_request(request_id="bad", parameters=parameters))
        auto = {"draft_length": "auto"}
        stream.send(script_request(request_id="good", parameters=auto, tokens=1))
        refused, answered = stream.receive(), stream.receive()
    assert message in refused.error_message
    assert refused.infer_response.id == "bad"
    assert text_of(answered) == "w0"


def test_tritons_own_refusal_of_wrong_tensors_comes_through(url: str) -> None:
    """What only Triton can judge, its shapes and inputs, it judges; the stream goes on."""
    wrong = script_request(request_id="bad")
    wrong.inputs[0].shape[0] = 5
    strange = script_request(request_id="strange")
    strange.inputs[0].name = "txt_input"
    with raw_stream(url) as stream:
        stream.send(wrong)
        refused = stream.receive()
        assert refused.error_message.startswith("unexpected shape for input 'text_input'")
        assert refused.infer_response.id == "bad"
        stream.send(strange)
        sentence = stream.receive().error_message
        assert sentence.startswith("unexpected inference input 'txt_input' for model 'qwen_mtp'; ")
        assert sentence.endswith("; did you mean text_input?")
        stream.send(script_request(tokens=1))
        assert text_of(stream.receive()) == "w0"


@pytest.mark.parametrize("with_final", [False, True])
def test_an_error_that_every_variant_gives_reaches_the_client(
    gateway: GatewayThread, with_final: bool
) -> None:
    """The client sees the tokens, then the error; the policy sees an error; the stream goes on."""
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(
            script_request(request_id="r", tokens=3, error_at=2, error_with_final=with_final)
        )
        assert [text_of(stream.receive()) for _ in range(2)] == ["w0", "w1"]
        failed = stream.receive()
        assert failed.error_message == "internal error: the engine broke"
        assert failed.infer_response.id == "r"
        assert parameter(failed, "variant") in {"k0", "k1", "k3"}
        stream.send(script_request(request_id="r", tokens=1))
        assert text_of(stream.receive()) == "w0"
    assert [o.finish_reason for _, o in learned(gateway)[-2:]] == ["error", "length"]


def test_other_models_pass_untouched(url: str) -> None:
    """A variant by its own name, and any other model, are Triton's: nothing is read or added."""
    with raw_stream(url) as stream:
        for model in ("qwen_mtp_k1", "other"):
            stream.send(script_request(model, "own", tokens=1, parameters={"anything": "goes"}))
            response = stream.receive()
            assert response.infer_response.model_name == model
            assert set(response.infer_response.parameters) == {"triton_final_response"}
        stream.send(script_request("nowhere"))
        assert "unknown model: 'nowhere'" in stream.receive().error_message
        stream.send(script_request(tokens=1))
        assert stream.receive().infer_response.model_name == "qwen_mtp"


def test_refused_requests_beside_answers_leave_triton_alive(url: str) -> None:
    """Triton 2.51 aborts within some tens of such streams when they reach it as one each."""
    for _ in range(60):
        with raw_stream(url) as stream:
            for index in range(8):
                model = "nowhere" if index % 2 else "other"
                stream.send(script_request(model, tokens=2))
            answers = [stream.receive() for _ in range(12)]
        assert sum(bool(answer.error_message) for answer in answers) == 4


def test_the_async_client_works_too(url: str) -> None:
    """tritonclient.grpc.aio streams through the gateway unchanged."""

    async def ask() -> list[bytes]:
        async with tritonclient.grpc.aio.InferenceServerClient(url) as client:

            async def requests() -> AsyncIterator[dict[str, object]]:
                inputs = [tensor("text_input", '{"tokens": 3}'), tensor("streaming", True)]
                yield {"model_name": "qwen_mtp", "inputs": inputs, "request_id": "a"}

            return [
                result.as_numpy("text_output")[0]
                async for result, error in client.stream_infer(requests())
                if error is None
            ]

    assert asyncio.run(asyncio.wait_for(ask(), 60)) == [b"w0", b"w1", b"w2"]


def test_a_single_answer_without_streaming(gateway: GatewayThread) -> None:
    """ModelInfer answers for the public model, though Triton has no single answers for it."""
    client = tritonclient.grpc.InferenceServerClient(gateway.gateway.address)
    wanted = [tritonclient.grpc.InferRequestedOutput("text_output")]
    inputs = [tensor("text_input", '{"tokens": 4}')]
    result = client.infer("qwen_mtp", inputs, request_id="u", outputs=wanted)
    response = result.get_response()
    assert result.as_numpy("text_output").tolist() == [b"w3"]
    assert [output.name for output in response.outputs] == ["text_output"]
    assert (response.model_name, response.id) == ("qwen_mtp", "u")
    assert response.parameters["variant"].string_param == "k3"
    assert learned(gateway)[-1][1].num_steps == 4
    for script, streams, message in (
        ('{"tokens": 1}', True, "use ModelStreamInfer"),
        ('{"tokens": 2, "error_at": 1}', False, "the engine broke"),
    ):
        inputs = [tensor("text_input", script), tensor("streaming", streams)]
        with pytest.raises(tritonclient.utils.InferenceServerException, match=message):
            client.infer("qwen_mtp", inputs)
    client.close()


def test_a_prompt_is_read_through_windows_only(gateway: GatewayThread) -> None:
    """The policy sees the ends of a long prompt; the variant gets all of it."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    text = ("a" * 3_000_000 + "z" * 3_000).encode()
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(request)
        assert text_of(stream.receive()) == "w2"
    features = gateway.policy.seen[-1]
    assert (features.head, features.tail) == ("a" * 2000, "z" * 2000)
    assert features.num_chars == pytest.approx(len(text), rel=0.01)


def test_prompts_are_not_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an answered request nor a refused one leaves its prompt in the log."""
    caplog.set_level("DEBUG", logger="trt_mtp")
    with raw_stream(url) as stream:
        stream.send(script_request(name="a-secret"))
        stream.receive()
        stream.send(script_request(name="a-secret", parameters={"tsk": "qa"}))
        stream.receive()
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("change", [-1, 1])
def test_raw_contents_have_to_be_one_for_each_input(url: str, change: int) -> None:
    """A surplus one would be the gateway's own next input, the seed, and a missing one take it."""
    request = script_request(tokens=2)
    if change > 0:
        request.raw_input_contents.append((7).to_bytes(8, "little"))
    else:
        request.inputs.add(name="sampling_param_max_tokens", datatype="INT32", shape=[1])
    with raw_stream(url) as stream:
        stream.send(request)
        assert "raw_input_contents: send one for each input" in stream.receive().error_message
        stream.send(script_request(tokens=2))
        assert not stream.receive().error_message


def test_the_typed_form_of_tensors_is_read_as_well(gateway: GatewayThread) -> None:
    """Clients that put values into `contents` rather than raw bytes are understood."""
    request = pb.ModelInferRequest(model_name="qwen_mtp")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b'{"tokens": 1}')
    limit = request.inputs.add(name="sampling_param_max_tokens", datatype="INT32", shape=[1])
    limit.contents.int_contents.append(9)
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(request)
        assert text_of(stream.receive()) == "w0"
    features = gateway.policy.seen[-1]
    assert (features.head, features.max_tokens) == ('{"tokens": 1}', 9)


def test_ids_are_counted_as_prompt_tokens(gateway: GatewayThread) -> None:
    """Where a client sends token ids, the length of the prompt is known."""
    with streaming(gateway.gateway.address) as stream:
        stream.ask("qwen_mtp", input_ids=np.arange(7, dtype=np.int32), streaming=True)
    assert gateway.policy.seen[-1].num_prompt_tokens == 7


def test_a_template_may_think_by_default(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a request doesn't say, what is learned is filed under what its template does."""
    monkeypatch.setattr(ChatFormat, "is_open", lambda _, said, has_tools: said is not False)
    messages = json.dumps([{"role": "user", "content": '{"tokens": 1}'}])
    with running_gateway(doubles.grpc_url) as thread, streaming(thread.gateway.address) as stream:
        stream.ask("qwen_mtp", messages=messages)
        stream.ask("qwen_mtp", messages=messages, enable_thinking=False)
        stream.ask("qwen_mtp", text_input='{"tokens": 1}')
        assert [features.thinking for features in thread.policy.seen] == [True, False, False]
