"""vLLM behind Triton and the gateway: what is promised of every engine, and what this one adds."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import CliResult
from tests.gateway_fixtures import running_gateway
from tests.triton_client import Response, Stream, streaming, text_of
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.serve.divergence import first_difference
from trt_mtp.serve.processes import descendants
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.verify import NEAR_TIE

CHAT = json.dumps([{"role": "user", "content": "Return JSON with the keys name, city and year: "
                    "Ada Lovelace, London, 1843."}])  # fmt: skip
NUM_TOKENS = 160
GREEDY: dict[str, Any] = {
    "messages": CHAT,
    "streaming": True,
    "sampling_param_max_tokens": NUM_TOKENS,
    "sampling_param_temperature": 0.0,
}
LONG: dict[str, Any] = {  # answers that are not over before something happens to them
    **GREEDY,
    "sampling_param_max_tokens": 900,
    "sampling_param_ignore_eos": True,
}
SAMPLED: dict[str, Any] = {**GREEDY, "sampling_param_temperature": 0.8, "sampling_param_seed": 5}


def ids_of(responses: list[Response]) -> list[int]:
    """The tokens of an answer."""
    assert not responses[-1].error, responses[-1].error
    return [token for response in responses for token in response.outputs.get("output_ids", [])]


def ask(server: TritonServer, model: str, **request: Any) -> list[Response]:
    """One answer of a variant."""
    with streaming(server.grpc_url) as stream:
        return stream.ask(model, **request)


def require_same(
    server: TritonServer, one: list[int], other: list[int], request: dict[str, Any] = GREEDY
) -> None:
    """Both are one greedy answer to `request`, or part at a near tie."""
    if one == other:
        return
    at = first_difference(one, other)
    asked = {**request, "emitted_ids": one[:at], "sampling_param_max_tokens": at + 1}
    if not at:
        del asked["emitted_ids"]
    responses = ask(server, "qwen_mtp_k0", **asked, return_margin=True)
    assert responses[-1].outputs["margin"][0] <= NEAR_TIE


def test_greedy_answers_are_those_without_speculation(triton: TritonServer) -> None:
    """Token for token but for near ties, in steps that bring several tokens, and counted."""
    none = ask(triton, "qwen_mtp_k0", **GREEDY)
    three = ask(triton, "qwen_mtp_k3", **GREEDY)
    require_same(triton, ids_of(none), ids_of(three))
    last = three[-1].outputs
    assert last["num_steps"][0] < none[-1].outputs["num_steps"][0]
    positions = last["accepted_per_position"]
    assert len(positions) == 3
    assert list(positions) == sorted(positions, reverse=True)
    assert last["num_accepted_draft_tokens"][0] == sum(positions)
    assert last["num_draft_tokens"][0] == 3 * last["num_steps"][0]
    assert len(ids_of(three)) == last["num_output_tokens"][0]


def test_sampled_answers_repeat_at_one_length(triton: TritonServer) -> None:
    """A seed gives its own text again and again; at temperature 0.01 it is the greedy one."""
    first, again = (ids_of(ask(triton, "qwen_mtp_k3", **SAMPLED)) for _ in range(2))
    assert first == again
    cold = {**SAMPLED, "sampling_param_temperature": 0.01}
    require_same(
        triton,
        ids_of(ask(triton, "qwen_mtp_k3", **GREEDY)),
        ids_of(ask(triton, "qwen_mtp_k3", **cold)),
    )


def test_a_stop_text_ends_an_answer_at_its_character(triton: TritonServer) -> None:
    """It is cut out of a step's tokens, and the reason is `stop`."""
    whole = text_of(ask(triton, "qwen_mtp_k3", **GREEDY))
    stop = whole[20:26]
    stopped = ask(triton, "qwen_mtp_k3", **GREEDY, sampling_param_stop=stop)
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped[-1].outputs["finish_reason"][0] == b"stop"


def test_another_variant_continues_an_answer(triton: TritonServer) -> None:
    """After any number of its tokens, the greedy answer is that of one piece."""
    whole = ids_of(ask(triton, "qwen_mtp_k3", **GREEDY))
    for seam in (1, len(whole) // 2, len(whole) - 1):
        rest = ask(triton, "qwen_mtp_k0", **GREEDY, emitted_ids=whole[:seam])
        require_same(triton, whole, whole[:seam] + ids_of(rest))


def test_a_cancelled_request_ends(triton: TritonServer) -> None:
    """Within a few steps, with the tokens it had."""
    with streaming(triton.grpc_url) as stream, streaming(triton.grpc_url) as other:
        stream.send("qwen_mtp_k3", request_id="a", **LONG)
        stream.receive()
        (told,) = other.ask("qwen_mtp_k3", cancel_request_id="a")
        assert told.outputs["cancelled"][0]
        while not (response := stream.receive()).is_final:
            pass
    assert response.outputs["finish_reason"][0] == b"cancelled"


def engine_pids(server: TritonServer, model: str) -> set[int]:
    """vLLM's own processes of a model."""
    for pid in server.stub_pids:
        if f"/{model}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return descendants(pid)
    raise AssertionError(f"{model} has no process")


def test_answers_survive_their_engine(triton: TritonServer) -> None:
    """kill -9 of vLLM's processes in mid-answer: another variant goes on, greedy and sampled."""
    drawn = {**LONG, "sampling_param_temperature": 0.8, "sampling_param_seed": 5}
    whole = ids_of(ask(triton, "qwen_mtp_k0", **LONG))
    with (
        running_gateway(triton.grpc_url, stall=StallLimits(factor=1.0, min_s=30.0)) as gateway,
        streaming(gateway.gateway.address) as greedy,
        streaming(gateway.gateway.address) as sampled,
    ):
        answers: list[tuple[Stream, list[Response]]] = [(greedy, []), (sampled, [])]
        for (stream, _), request in zip(answers, (LONG, drawn), strict=True):
            stream.send("qwen_mtp", **request)  # to the longest draft length
        for stream, responses in answers:
            responses.append(stream.receive())
        for pid in engine_pids(triton, "qwen_mtp_k3"):
            os.kill(pid, signal.SIGKILL)
        for stream, responses in answers:
            while not responses[-1].is_final:
                responses.append(stream.receive())
        statistics = gateway.gateway.statistics()
    assert sum(task["num_failed_over"] for task in statistics["tasks"].values()) == 2
    require_same(triton, whole, ids_of(answers[0][1]), LONG)
    assert len(ids_of(answers[1][1])) == 900


def test_verify_tells_drift_from_faults(engines: Path, cli: Callable[..., CliResult]) -> None:
    """Greedy answers are equal but for near ties and late drift, sampled ones in distribution."""
    ended = cli("verify", engines, "--json")
    assert ended.code == 0, ended.err
    none, three = json.loads(ended.out)["variants"]
    assert none["is_identical"]
    assert three["is_passed"]
    assert three["sampled"]["num_answers"] == 512
