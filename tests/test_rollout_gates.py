"""The gates: what is worse is found, what is as good is let through."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rollout_gates import run
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.rollout.evidence import EvidenceReader, LogReader
from trt_mtp.controller.rollout.gates import GateKeeper, Requests
from trt_mtp.controller.rollout.spec import Gates
from trt_mtp.controller.tasks import TASKS

RANDOM = np.random.default_rng(7)


def requests(num: int, columns: Mapping[str, float]) -> Requests:
    """Requests with noisy times, multiplied by `columns`; is_error is a share."""
    noise = RANDOM.lognormal(0, 0.1, num)
    return Requests(
        task=np.zeros(num),
        is_error=(RANDOM.random(num) < columns.get("is_error", 0)).astype(float),
        ttft_s=0.1 * noise * columns.get("ttft_s", 1),
        tpot_s=0.02 * noise * columns.get("tpot_s", 1),
        tok_s=50 / noise * columns.get("tok_s", 1),
        acceptance_length=2.5 / noise * columns.get("acceptance_length", 1),
    )


def judged(**columns: float) -> GateKeeper:
    """A canary that differs by `columns`, over some windows whose load goes up and down."""
    keeper = GateKeeper(Gates())
    for window in range(40):
        load = 1 + 0.3 * math.sin(window)
        slow = {"ttft_s": load, "tpot_s": load, "tok_s": 1 / load}
        canary = {name: value * columns.get(name, 1) for name, value in slow.items()}
        keeper.add(requests(30, {**columns, **canary}), requests(100, slow))
    return keeper


def test_as_good_passes() -> None:
    """A canary that is no other fails no gate, whatever the load does meanwhile."""
    keeper = judged()
    assert keeper.failed() == []
    assert keeper.num_canary == 1200


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("tok_s", {"tok_s": 0.9}),
        ("acceptance_length", {"acceptance_length": 0.9}),
        ("error_rate", {"is_error": 0.05}),
        ("ttft_p50", {"ttft_s": 1.2}),
        ("tpot_p95", {"tpot_s": 1.3}),
    ],
)
def test_each_gate_finds_its_own(gate: str, change: dict[str, float]) -> None:
    """What got worse fails the gate that is named for it, with a sentence that says how much."""
    failed = {result.gate: result for result in judged(**change).failed()}
    assert gate in failed
    assert gate.partition("_p")[0] in failed[gate].sentence()
    assert failed[gate].p_value <= failed[gate].threshold == Gates().alpha / 31


def test_better_is_no_failure() -> None:
    """Gates have one side: faster answers and longer acceptance fail nothing."""
    better = judged(tok_s=1.5, acceptance_length=1.5, ttft_s=0.5, tpot_s=0.5)
    assert better.failed() == []


def test_a_canary_alone_proves_nothing() -> None:
    """Without stable requests in the same window there is no comparison."""
    keeper = GateKeeper(Gates())
    keeper.add(requests(100, {"tok_s": 0.1}), requests(0, {}))
    assert keeper.failed() == []


@pytest.mark.parametrize(("share", "is_failed"), [(0.0, False), (0.1, True)])
def test_errors_are_seen_when_nothing_is_left_to_compare_with(
    share: float, is_failed: bool
) -> None:
    """At 100 % the canary is held to what the stable side's errors were."""
    keeper = GateKeeper(Gates())
    keeper.add(requests(10, {}), requests(1000, {}))
    for _ in range(10):
        keeper.add(requests(60, {"is_error": share}), requests(0, {}))
    assert [result.gate for result in keeper.failed()] == ["error_rate"] * is_failed


def test_simulated_rollouts_hold_alpha_and_find_5_percent() -> None:
    """The short form of benchmarks/rollout_gates.py: no false abort, every slow task found."""
    result = run(rollouts=6, num_canary=600, seed=3)
    aborted = {case["case"]: case["aborted"] for case in result["cases"]}
    assert aborted["equal"] == aborted["slower by the tolerance"] == 0
    assert aborted["one of 4 tasks 5 % slower"] == aborted["one of 13 tasks 5 % slower"] == 6


def line(at_s: float, side: str, variant: str, accepted: tuple[int, ...], **outcome: object) -> str:
    """A line of a decision log."""
    values = asdict(
        Outcome(
            len(accepted), 10, 10 * len(accepted), sum(accepted), accepted, 25, 0.1, 1.0, "stop"
        )
    )
    decision = {"now_s": at_s - 1.0, "side": side, "variant": variant, "task": TASKS[0]}
    return json.dumps({"decision": decision, "outcome": {**values, **outcome}}) + "\n"


def test_evidence_follows_from_the_log_alone(tmp_path: Path) -> None:
    """Reading in two goes, across a rotation, or again from the start gives the same numbers."""
    log = tmp_path / "decisions.jsonl"
    lines = [
        line(100 + n / 10, side, f"k3{side}", (8, 5, 3))
        for n in range(200)
        for side in ("stable", "canary")
    ]
    reader = EvidenceReader([log], Gates(window_s=5), since_s=0)
    log.write_text("".join(lines[:150]) + lines[150][:20])
    reader.read(now_s=109)
    log.write_text("".join(lines[:200]))  # in place: the inode stays
    reader.read(now_s=112)
    log.rename(tmp_path / "decisions.jsonl.1")
    log.write_text("".join(lines[200:]))
    reader.read(now_s=200)
    again = EvidenceReader([log], Gates(window_s=5), since_s=0)
    again.read(now_s=200)
    assert reader.summary() == again.summary()
    assert reader.keeper.num_canary == 200


def test_different_draft_lengths_are_compared_over_what_both_draft(tmp_path: Path) -> None:
    """K = 1 accepts less than K = 3 and is no failure for that."""
    log = tmp_path / "decisions.jsonl"
    lines = [line(100 + n / 50, "stable", "k3", (8, 5, 3)) for n in range(500)]
    lines += [line(100 + n / 50, "canary", "k1", (8,)) for n in range(500)]
    log.write_text("".join(lines))
    reader = EvidenceReader([log], Gates(window_s=1), since_s=0)
    reader.read(now_s=200)
    (result,) = [r for r in reader.keeper.results() if r.gate == "acceptance_length"]
    assert (result.change, result.is_failed) == (0.0, False)


def test_other_lines_are_passed_over(tmp_path: Path) -> None:
    """Requests of before, without a side or cancelled, and broken lines, count for nothing."""
    log = tmp_path / "decisions.jsonl"
    log.write_text(
        line(5, "canary", "k3", (1,))
        + line(100, "", "k3", (1,))
        + line(100, "canary", "k3", (1,), finish_reason="cancelled")
        + "no JSON\n{}\n"
        + line(100, "canary", "k3", (1,))
    )
    reader = EvidenceReader([log], Gates(), since_s=50)
    reader.read(now_s=1000)
    assert reader.num_seen == 1
    assert list(LogReader(tmp_path / "absent").lines()) == []
