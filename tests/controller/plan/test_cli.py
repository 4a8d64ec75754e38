"""`trt-mtp plan` as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CliResult
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.plan.traffic import read_traffic
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.errors import InputError

Cli = Callable[..., CliResult]
RATES = {
    "tasks": {
        "coding": {"requests_per_s": 6, "prompt_tokens": 1500, "output_tokens": 400},
        "writing": {"requests_per_s": 3, "prompt_tokens": 300, "output_tokens": 700},
    }
}
KEYS = ["schema_version", "replicas", "cost", "best_single", "schedule_everywhere", "router_gain",
        "tasks", "headroom", "reason"]  # fmt: skip


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Rates by task."""
    return written(tmp_path / "traffic.json", RATES)


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_the_json_has_its_keys(cli: Cli, rates: Path) -> None:
    """Scripts find what is promised, and the same call gives the same bytes."""
    call = ("plan", "qwen3.8-27b-fp8", "--traffic", rates, "--gpu", "h100-80gb", "--gpus", "16",
            "--tpot-p99-ms", "20", "--ttft-p99-ms", "2000", "--json")  # fmt: skip
    result = cli(*call)
    assert (result.code, result.err) == (0, "")
    value = json.loads(result.out)
    assert list(value) == KEYS
    assert value["schema_version"] == 1
    assert [list(one) for one in value["replicas"]] == [
        ["draft_length", "schedule", "batch", "count"]
    ]
    assert set(value["best_single"]) == {"draft_length", "cost"}
    assert {"schedule", "cost"} <= set(value["schedule_everywhere"])
    assert value["tasks"].keys() == RATES["tasks"].keys()
    for task in value["tasks"].values():
        assert task["tpot_ms"]["p50"] <= task["tpot_ms"]["p99"] <= 20
        assert task["ttft_ms"]["p50"] <= task["ttft_ms"]["p99"] <= 2000
    assert cli(*call).out == result.out


def test_a_profile_is_planned_with(cli: Cli, rates: Path, tmp_path: Path) -> None:
    """A profile needs no GPU's name, and is not called a prior."""
    profile = Profile(
        plain_step_s={1: 0.01, 32: 0.02}, step_ratio={3: {1: 1.4, 32: 1.8}},
        prefill_tokens_per_s=20_000, measured_on={"device": "h100-80gb"},
    )  # fmt: skip
    write_profile(tmp_path / "profile.json", profile)
    result = cli("plan", tmp_path / "profile.json", "--traffic", rates, "--gpus", "64")
    assert (result.code, result.err) == (0, "")
    assert "of h100-80gb" in result.out
    assert "prior" not in result.out
    other = cli(
        "plan", tmp_path / "profile.json", "--traffic", rates, "--gpus", "64", "--gpu", "h200-141gb"
    )
    assert other.code == 2
    assert "was measured on h100-80gb, not on h200-141gb" in other.err


def test_manifests_are_yaml(cli: Cli, rates: Path) -> None:
    """Helm values and ScaledObjects name the same variants and hold them at the same load."""
    call = ("plan", "qwen3.8-27b-fp8", "--traffic", rates, "--gpu", "h100-80gb", "--gpus", "8")
    [variant] = yaml.safe_load(cli(*call, "--format", "helm").out)["variants"]
    [scaled] = yaml.safe_load_all(cli(*call, "--format", "keda").out)
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert scaled["spec"]["scaleTargetRef"]["name"] == f"trt-mtp-{variant['name']}"
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert int(trigger["threshold"]) == variant["keda"]["inFlightPerReplica"]
    assert f'variant="k{variant["draftLength"]}"' in trigger["query"]
    assert variant["keda"]["maxReplicas"] == 8
    assert variant["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert 1 <= scaled["spec"]["minReplicaCount"] <= variant["replicas"]


def test_notes_of_a_profile_are_no_values(cli: Cli, rates: Path, tmp_path: Path) -> None:
    """However many lines they have, they stay in the comment."""
    profile = Profile(notes="a prior\nimage: x\n--- \u2028image: x\r#", step_ratio={1: {1: 1.2}})
    write_profile(tmp_path / "profile.json", profile)
    call = ("plan", tmp_path / "profile.json", "--traffic", rates, "--gpus", "64")
    assert set(yaml.safe_load(cli(*call, "--format", "helm").out)) == {"variants"}
    scaled = yaml.safe_load_all(cli(*call, "--format", "keda").out)
    assert {each["kind"] for each in scaled} == {"ScaledObject"}


def test_the_page_has_two_plots(cli: Cli, rates: Path, tmp_path: Path) -> None:
    """A page that needs no network, with cost over load and speed per task."""
    page = tmp_path / "plan.html"
    call = ("plan", "qwen3.8-27b-fp8", "--traffic", rates, "--gpu", "h100-80gb", "--gpus", "16")
    result = cli(*call, "--format", "html", "-o", page)
    assert (result.code, result.out) == (0, "")
    text = page.read_text()
    assert text.count('class="plot"') == 2
    assert "http" not in text.replace("http://www.w3.org", "")


TRACE = [
    {"time_s": float(i), "task": "coding" if i % 2 else "qa", "prompt_tokens": 100 + i,
     "output_tokens": 200}
    for i in range(60)
]  # fmt: skip


def test_a_trace_is_traffic(tmp_path: Path) -> None:
    """Rates are those of its time, lengths those of its requests."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in TRACE))
    read = read_traffic(trace)
    assert set(read) == {"coding", "qa"}
    assert read["coding"].requests_per_s == pytest.approx(0.5)
    assert read["coding"].output_tokens == 200
    assert len(read["qa"].seen) == 30


def test_a_busy_hour_counts(tmp_path: Path) -> None:
    """Of a long trace the busiest ten minutes are planned for."""
    quiet = [{**TRACE[0], "time_s": 100.0 * i} for i in range(100)]
    busy = [{**TRACE[1], "time_s": 3000.0 + i} for i in range(600)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in quiet + busy))
    read = read_traffic(trace)
    assert read["coding"].requests_per_s == pytest.approx(1.0)
    assert read["qa"].requests_per_s == pytest.approx(0.01)


def test_a_decision_log_is_traffic(tmp_path: Path) -> None:
    """What a gateway logged has tasks, times and both lengths."""
    policy, log = Policy(), DecisionLog(tmp_path / "decisions.jsonl")
    for i in range(20):
        features = request("Why?" * 100, hint_task="qa")
        log.append(policy.choose(features, variants(0, 3), now_s=float(i)), outcome(3))
    log.close()
    read = read_traffic(tmp_path / "decisions.jsonl")
    assert read["qa"].requests_per_s == pytest.approx(1.0)
    assert read["qa"].prompt_tokens == pytest.approx(100)
    assert read["qa"].output_tokens == outcome(3).num_output_tokens


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"tasks": {"coding": {"requests_per_s": 5}}}', "tasks.coding.prompt_tokens is missing"),
        ('{"tasks": {"codng": {"requests_per_s": 5, "prompt_tokens": 1, "output_tokens": 1}}}',
         "'codng' is not a task; did you mean coding?"),
        ('{"tasks": {}}', "tasks is {}"),
        ('{"rates": {}}', "the key tasks is missing"),
        ('{"time_s": 1, "task": "qa"}\n', "line 1: the key prompt_tokens is missing"),
        ('{"time_s": 1, "task": "qa", "prompt_tokens": 5, "output_tokens": 5}\n',
         "holds 1 answered requests: expected two or more"),
        (2 * '{"time_s": 1, "task": "qa", "prompt_tokens": 5, "output_tokens": 5}\n',
         "all requests have the same time"),
        ("12.5\n13\n", "line 1: "),
        ("nonsense", "line 1 is not JSON"),
        ("", "holds 0 answered requests"),
    ],
)  # fmt: skip
def test_traffic_that_is_none_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    """One sentence with the file and what was expected."""
    file = tmp_path / "traffic.json"
    file.write_text(content)
    with pytest.raises(InputError) as refused:
        read_traffic(file)
    assert str(file) in str(refused.value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("qwen3.8-27b --gpu h100-80gb --gpus 0", "--gpus 0: a fleet needs at least one"),
        ("qwen3.8-27b --gpus 4", "qwen3.8-27b: a model by name needs --gpu"),
        ("qwen3.8-72b --gpu h100-80gb --gpus 4", "neither a file nor a model known by name"),
        ("qwen3.8-27b --gpu h100 --gpus 4", "--gpu 'h100' is not known"),
        ("qwen3.8-2.4t-a95b --gpu l4-24gb --gpus 4", "and l4-24gb has 24 GB"),
        ("qwen3.5-397b-a17b --gpu h100-80gb --gpus 4", "takes 16 of h100-80gb"),
        ("qwen3.8-27b --gpu l40s-48gb --tp 1 --gpus 4", "l40s-48gb has 48 GB: give --tp 2"),
        ("qwen3.8-27b --gpu h100-80gb --gpus 4 --tpot-p99-ms nan", "expected a number above 0"),
        ("qwen3.8-27b --gpu h100-80gb --gpus 4 --gpu-cost 0", "--gpu-cost 0: expected a number"),
        ("qwen3.8-27b --gpu h100-80gb --gpus 4 --fleet 3x4", "'3x4' should be like 3=4"),
        ("published --gpus 400 --tp 2", "--tp 2: published was measured as it is"),
        ("missing.json --gpus 4", "missing.json does not exist"),
    ],
)
def test_bad_input_is_one_sentence(cli: Cli, rates: Path, call: str, sentence: str) -> None:
    """Exit code 2, nothing on stdout, and what to do."""
    result = cli("plan", *call.split(), "--traffic", rates)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert len(result.err.strip().splitlines()) == 1
