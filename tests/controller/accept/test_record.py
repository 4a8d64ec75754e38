"""What gets into a record: listed words and numbers, whatever the steps kept."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.accept.differences import differences
from trt_mtp.controller.accept.page import page_of
from trt_mtp.controller.accept.record import Record, record_json
from trt_mtp.controller.accept.recording import record_of
from trt_mtp.controller.accept.step import Outcome, phrases_in
from trt_mtp.controller.accept.verdict import Parting, compared

DOCTOR = {
    "machine": {
        "system": "Linux 6.1-ada", "python": "3.11.7", "num_cores": 2, "num_gpus": 1,
        "product": "NVIDIA H100 80GB HBM3", "driver": "580.65.06", "is_container": True,
        "gpu": "h100-80gb",
    },
    "findings": [{"subject": "machine", "rule": "port-in-use", "severity": "warning"}],
}  # fmt: skip
VARIANT = {
    "name": "k3", "draft_length": 3, "fingerprint": "0123456789abcdef",
    "family": "qwen3.5", "max_batch_size": 8,
    "findings": [{"subject": "k3", "rule": "penalties", "severity": "info"}],
    "asks_for_replay": True, "planned_bytes": 70_000_000_000,
}  # fmt: skip
VERIFIED = {
    "name": "k3", "is_passed": True, "is_exact": False, "num_prompts": 8, "num_tokens": 4096,
    "left_at": [180, 300], "acceptance_length": 2.5, "sampled": {"p_value": 0.5},
    "measured": {
        "load_s": 60.0, "host_bytes": 10**9, "gpu_bytes": 71_000_000_000,
        "steps": [
            {"batch_size": 1, "step_ms": 9.0, "tokens_per_s": 250.0, "acceptance_length": 2.5}
        ],
    },
}  # fmt: skip
CHECK = {
    "name": "failover", "status": "passed", "reason": "drifts",
    "numbers": {"first_left_at": 164}, "detail": "",
}  # fmt: skip
CELL = {
    "task": "coding", "draft_length": 3, "concurrency": 1, "num_requests": 8,
    "acceptance_length": 2.5, "tokens_per_s": 200.0, "speedup": [1.5, 1.4, 1.6], "is_failed": False,
}  # fmt: skip
BEST = {
    "task": "coding", "draft_length": 3, "concurrency": 1, "speedup": [1.5, 1.4, 1.6],
    "is_settled": True,
}  # fmt: skip


def outcomes() -> list[Outcome]:
    """A run on a GPU, as the steps keep it."""
    facts: dict[str, dict[str, Any]] = {
        "doctor": DOCTOR,
        "build": {"described": [VARIANT]},
        "verify": {"described": [VARIANT], "variants": [VERIFIED], "says_replay": True},
        "serve": {"described": [VARIANT], "hosted": ["k3"], "triton": "2.60.0"},
        "smoke": {"checks": [CHECK]},
        "calibrate": {"cells": [CELL], "best": [BEST]},
    }
    return [Outcome(name, "passed", 60, 1.5, copy.deepcopy(facts[name])) for name in facts]  # type: ignore[arg-type]


def places() -> list[tuple[Any, ...]]:
    """Every text in what the steps keep, with the step's index first; not those that are enums."""
    fixed = {"severity", "status", "name", "subject", "rule"}  # of our own lists
    return [
        (at, *path)
        for at, outcome in enumerate(outcomes())
        for path in texts_in(outcome.facts)
        if path[-1] not in fixed
    ]


def texts_in(value: Any) -> list[tuple[Any, ...]]:
    """Where a JSON-like value has texts."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [(key, *path) for key, part in items for path in texts_in(part)]
    return [()] if isinstance(value, str) else []


SECRETS = st.sampled_from(
    [
        "/home/ada/models/secret-27b", "ada@build-host-7.corp.example", "hf_AbCdEfGhIjKlMnOp",
        "10.20.30.40:8001", "build-host-7", "My password is hunter2.", "sk-proj-1234",
    ]
)  # fmt: skip


@given(st.sampled_from(places()), SECRETS)
def test_no_secret_gets_in(place: tuple[Any, ...], secret: str) -> None:
    """A secret in any text that a step keeps is not in the record, nor on the page."""
    planted = outcomes()
    part: Any = planted[place[0]].facts
    for key in place[1:-1]:
        part = part[key]
    part[place[-1]] = secret
    assert_has_not(planted, secret)


@given(SECRETS)
def test_no_sentence_gets_in(secret: str) -> None:
    """Of sentences of failures, only listed phrases are told."""
    sentence = f"{secret}: CUDA error: out of memory"
    planted = outcomes()
    planted[2] = Outcome("verify", "failed", 60, 1.0, {}, sentence, phrases_in(sentence))
    planted[4].facts["checks"][0]["detail"] = sentence
    planted[4].facts["checks"][0]["numbers"] = {secret: 1.0}
    planted[1].facts[secret] = secret
    record = assert_has_not(planted, secret)
    assert record.steps[2].phrases == ("out of memory", "CUDA error")
    assert record.checks[0].phrases == ("out of memory", "CUDA error")


def assert_has_not(planted: list[Outcome], secret: str) -> Record:
    """The record of `planted`, in which the secret is not."""
    record = record_of(planted, "tensorrt-llm")
    assert secret not in record_json(record)
    assert secret not in page_of(record)
    assert Record.model_validate(json.loads(record_json(record))) == record
    return record


def test_a_page_of_a_gpu() -> None:
    """What a reader of the issue looks for is there."""
    page = page_of(record_of(outcomes(), "tensorrt-llm"))
    assert "| GPUs | 1 × NVIDIA H100 80GB HBM3 |" in page
    assert "| driver | 580.65.06 |" in page
    assert "| k3 | 3 | yes; 2 of 8 leave, at token 180, 300; sampled: p = 0.5000 | 2.50 |" in page
    assert "71.0 GB on GPUs (70.0 planned)" in page
    assert "| coding | 1 | 3 | 8 | 2.50 | 200 | 1.50 (1.40–1.60) |" in page


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"left_at": [12], "is_passed": False}, "k3: a greedy answer leaves at token 12"),
        ({"left_at": [12], "is_exact": True, "is_passed": False}, "as the CPU engine's always are"),
        ({"sampled": {"p_value": 0.0001}}, "k3: sampled answers have another distribution"),
        ({"measured": {**VERIFIED["measured"], "gpu_bytes": 79_000_000_000}},  # type: ignore[dict-item]
         "k3: 79.0 GB of GPU memory were used and 70.0 GB were planned"),
    ],
)  # fmt: skip
def test_differences(change: dict[str, Any], sentence: str) -> None:
    """What is otherwise than the docs say is a sentence of its own; without such, there is none."""
    assert differences(record_of(outcomes(), "tensorrt-llm")) == []
    planted = outcomes()
    planted[2].facts["variants"][0].update(change)
    (line,) = differences(record_of(planted, "tensorrt-llm"))
    assert sentence in line


def test_a_page_of_vllm() -> None:
    """It names the engine, and the version of the environment that the variants run in."""
    kept = outcomes()
    kept[1].facts["described"][0]["vllm"] = "0.32.0"
    page = page_of(record_of(kept, "vllm"))
    assert "checkpoint on vLLM," in page
    assert "| vllm | 0.32.0 |" in page


@pytest.mark.parametrize(
    ("partings", "is_exact", "verdict"),
    [
        ([None, Parting(12, is_near_tie=True), Parting(70)], False, ("passed", "drifts")),
        ([None, Parting(12)], False, ("failed", "other-tokens")),
        ([None, Parting(12, is_near_tie=True)], True, ("failed", "other-tokens")),
        ([None, None], True, ("passed", "")),
    ],
)
def test_where_answers_may_part(
    partings: list[Parting | None], is_exact: bool, verdict: tuple[str, str]
) -> None:
    """Late or at a near tie, unless the engine gives equal answers at every draft length."""
    found = compared(partings, is_exact)
    assert (found.status, found.reason) == verdict
