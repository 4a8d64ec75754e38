"""What the gateway reports to Prometheus."""

import http.client
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.controller.gateway.scrape import samples
from tests.gateway_fixtures import (
    FixedPolicy,
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    wait_until,
)
from tests.http_client import ask
from tests.lease_fixtures import DECISION, call_of, lease_of, replica_of
from trt_mtp.controller.acceptance import AcceptanceKey
from trt_mtp.controller.decision import CandidateScore, Decision
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.gateway.metrics import GatewayMetrics, regret_of
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.tasks import TASKS
from trt_mtp.serve.triton import TritonServer

OUTCOME = Outcome(
    draft_length=3,
    num_steps=4,
    num_draft_tokens=12,
    num_accepted_draft_tokens=6,
    accepted_per_position=(3, 2, 1),
    num_output_tokens=11,
    ttft_s=0.5,
    duration_s=1.5,
    finish_reason="stop",
)


def get(address: str | None, path: str) -> tuple[int, str, bytes]:
    """Status, content type and body of a GET."""
    assert address is not None
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with HTTP."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        yield thread


def test_a_request_is_counted_and_timed(gateway: GatewayThread) -> None:
    """One streamed answer shows in every metric that it touches, under its task and variant."""
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=5, parameters={"task": "coding", "draft_length": 3}))
        for _ in range(5):
            stream.receive()
    status, content_type, text = get(gateway.gateway.http_address, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(text)
    of = {name: value for (name, *labels), value in found.items() if labels == ["coding", "k3"]}
    assert of["requests_total"] == 1
    assert of["output_tokens_total"] == of["steps_total"] == 5
    assert (of["draft_tokens_total"], of["accepted_draft_tokens_total"]) == (15, 3)
    assert of["acceptance_length_sum"] == pytest.approx(1 + 3 / 5)
    assert of["ttft_seconds_count"] == of["tpot_seconds_count"] == 1
    assert of["requests_failed_total"] == of["requests_cancelled_total"] == 0
    assert found["decision_seconds_count", "", ""] >= 1
    assert found["variant_ready", "", "k3"] == 1


def test_what_is_refused_cancelled_or_failed_is_counted(gateway: GatewayThread) -> None:
    """Each way for a request to end badly has its counter, and nothing stays in flight."""

    def now() -> dict[tuple[str, str, str], float]:
        return samples(get(gateway.gateway.http_address, "/metrics")[2])

    before = now().get(("requests_refused_total", "", ""), 0)
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(parameters={"task": "nonsense"}))
        stream.receive()
        stream.send(script_request(tokens=2, error_at=1, parameters={"task": "rag"}))
        stream.receive()
        stream.receive()
        stream.send(script_request(tokens=500, delay_s=0.02, parameters={"task": "stem"}))
        stream.receive()
        assert now()["requests_in_flight", "", "k3"] == 1
    wait_until(lambda: now()["requests_in_flight", "", "k3"] == 0)
    found = now()
    assert found["requests_refused_total", "", ""] == before + 1
    assert sum(found.get(("requests_failed_total", "rag", k), 0) for k in ("k0", "k1", "k3")) == 1
    assert found["requests_cancelled_total", "stem", "k3"] == 1


CHAT = {"model": "qwen_mtp", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {**CHAT, "model": "another"}, 404),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400),
        ("/v1/chat/completions", {**CHAT, "logit_bias": {"1": 1}}, 400),
        ("/v1/chat/completions", {**CHAT, "trt_mtp": {"task": "nonsense"}}, 400),
        ("/v1/completions", b"{", 400),
        ("/v2/models/qwen_mtp/generate", b"{", 400),
        ("/v2/models/qwen_mtp/generate", {"text_input": "a", "streaming": "x"}, 400),
        ("/v2/models/qwen_mtp/generate_stream", {"text_input": [1]}, 400),
        ("/v2/models/qwen_mtp/infer", b"{", 400),
    ],
)
def test_what_a_door_refuses_is_counted(
    gateway: GatewayThread, path: str, body: Any, status: int
) -> None:
    """Once, wherever it is found: an operator sees that a client sends what is wrong."""
    before = gateway.gateway.metrics.num_refused()
    assert ask(gateway.gateway.http_address, "POST", path, body).status == status
    assert gateway.gateway.metrics.num_refused() == before + 1


def test_an_answer_in_one_piece_has_no_time_to_first_token(gateway: GatewayThread) -> None:
    """Only streamed answers tell when their first token came."""
    with raw_stream(gateway.gateway.address) as stream:
        stream.send(script_request(tokens=3, streaming=False, parameters={"task": "writing"}))
        stream.receive()
    found = samples(get(gateway.gateway.http_address, "/metrics")[2])
    assert found["output_tokens_total", "writing", "k3"] == 3
    assert found["ttft_seconds_count", "writing", "k3"] == 0


def test_times_and_ratios() -> None:
    """TPOT is over the tokens after the first, acceptance length is tokens per step."""
    metrics, call = GatewayMetrics(), call_of()
    with metrics.counted(call):
        metrics.placed(lease_of(call), 0.0001)
        call.failed_variants.append(replica_of("k1"))
        metrics.placed(lease_of(call), 0.0001)
        call.outcome = OUTCOME
    metrics.in_flight("k0", 2)
    metrics.waiting(2)
    found = samples(metrics.render({"k0": False}))
    assert found["ttft_seconds_sum", "math", "k3"] == 0.5
    assert found["tpot_seconds_sum", "math", "k3"] == pytest.approx(0.1)
    assert found["acceptance_length_sum", "math", "k3"] == 2.5
    assert found["regret_ratio_sum", "math", ""] == pytest.approx(0.25)
    assert found["requests_failed_over_total", "math", "k1"] == 1
    assert found["requests_total", "math", "k3"] == 1
    assert found["requests_finished_total", "math", "k3"] == 1
    assert found["requests_waiting", "", ""] == 2
    assert found["variant_ready", "", "k0"] == 0
    assert found["requests_in_flight", "", "k0"] == 2


class DriftingPolicy(FixedPolicy):
    """Sees a shift of coding's acceptance in every answer."""

    def home(self, session_id: str | None) -> str:
        return ""

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm:
        """Raise the alarm."""
        return DriftAlarm(AcceptanceKey("coding", "greedy", False), "down", 40)


def test_a_shift_of_acceptance_is_counted(doubles: TritonServer) -> None:
    """The learner's alarm shows under its task; tasks that never shifted stand at 0."""
    with running_gateway(doubles.grpc_url, DriftingPolicy(), http_port=0) as thread:
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request(tokens=1))
            stream.receive()
        wait_until(lambda: thread.gateway.statistics()["tasks"]["qa"]["num_finished"] == 1)
        found = samples(get(thread.gateway.http_address, "/metrics")[2])
    assert found["acceptance_drifts_total", "coding", ""] == 1
    assert found["acceptance_drifts_total", "qa", ""] == 0


def test_labels_are_bounded_whatever_a_policy_says() -> None:
    """A task that nobody knows has one common label."""
    metrics = GatewayMetrics()
    for index in range(3):
        metrics.placed(lease_of(call_of(), DECISION._replace(task=f"task-{index}")), 0.0001)
    found = samples(metrics.render({}))
    assert found["requests_total", "other", "k3"] == 3
    assert {task for _, task, _ in found} == {"", "other", *TASKS}


def test_every_metric_is_in_the_docs() -> None:
    """With its labels: who writes a query finds them."""
    page = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    text = GatewayMetrics().render({}).decode()
    for family in re.findall(r"^# TYPE trt_mtp_gateway_(\w+) ", text, re.MULTILINE):
        assert any(f"`{family}`" in row.split("|")[1] for row in rows), family


def test_regret_is_against_the_best_candidate_that_could_serve() -> None:
    """Rejected candidates don't count; without expected times there is no regret."""
    assert regret_of(DECISION) == pytest.approx(0.25)
    best = DECISION._replace(variant="k0", draft_length=0)
    assert regret_of(best) == 0
    untimed = DECISION._replace(candidates=(CandidateScore("k3", 3),))
    assert regret_of(untimed) is None


def test_health_and_paths_that_do_not_exist(gateway: GatewayThread) -> None:
    """Health is Triton's paths; any other path is refused in a sentence."""
    address = gateway.gateway.http_address
    assert get(address, "/v2/health/live")[0] == 200
    assert get(address, "/v2/health/ready")[0] == 200
    status, content_type, body = get(address, "/v2/models/other/generate/deep")
    assert (status, content_type) == (404, "application/json; charset=utf-8")
    assert b"is served at" in body


def test_what_a_variant_counts_below_nothing_costs_no_answer() -> None:
    """Its counters are its word; ours only grow."""
    metrics, call = GatewayMetrics(), call_of()
    with metrics.counted(call):
        metrics.placed(lease_of(call), 0.0001)
        call.outcome = replace(
            OUTCOME,
            num_steps=-1,
            num_draft_tokens=-2,
            num_accepted_draft_tokens=-3,
            num_output_tokens=-4,
        )
    found = samples(metrics.render({"k3": True}))
    assert found["requests_finished_total", "math", "k3"] == 1
    assert found["output_tokens_total", "math", "k3"] == 0
