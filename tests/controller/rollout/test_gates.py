"""The gates: what is worse is found, what is as good is let through."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rollout_gates import run
from benchmarks.rollout_sessions import Worse, rollout
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.rollout.gates import GateKeeper, Requests, upper_bound
from trt_mtp.controller.rollout.request_log import LogTail, RequestLog
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


NOBODY = requests(0, {})


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
    assert failed[gate].p_value <= failed[gate].threshold == Gates().alpha / 32


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
    """At 100% the canary is held to what the stable side's errors were."""
    keeper = GateKeeper(Gates())
    keeper.add(requests(10, {}), requests(1000, {}))
    for _ in range(10):
        keeper.add(requests(60, {"is_error": share}), requests(0, {}))
    assert [result.gate for result in keeper.failed()] == ["error_rate"] * is_failed


@pytest.mark.parametrize("num_sessions", [100, 500])
def test_conversations_do_not_abort_an_equal_canary(num_sessions: int) -> None:
    """A few long conversations that are slow are no evidence, however many requests they have."""
    aborted = [rollout(seed, num_sessions, Worse(), num_windows=15) for seed in range(12)]
    assert aborted == [None] * 12


def test_errors_that_were_as_frequent_before_abort_nothing() -> None:
    """At 100% the canary may fail as often as the stable side might have, not as it happened to.

    Of 100 requests at 2 % errors the stable side often had none by chance.
    """
    keeper = GateKeeper(Gates())
    keeper.add(requests(0, {}), requests(100, {}))
    for _ in range(20):
        keeper.add(requests(100, {})._replace(is_error=np.tile([0.0] * 49 + [1.0], 2)), NOBODY)
    assert keeper.failed() == []


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(1e-5, 0.2))
def test_the_bound_of_a_rate_is_above_what_was_seen(num: int, share: float, chance: float) -> None:
    """It is beyond the seen rate, comes closer with more requests, and no errors leave some."""
    num_errors = round(share * num)
    bound = upper_bound(num_errors, num, chance)
    assert num_errors / num < bound <= 1 or num_errors == num
    assert upper_bound(10 * num_errors, 10 * num, chance) <= bound + 1e-9
    assert upper_bound(0, num, chance) == pytest.approx(1 - chance ** (1 / num), abs=1e-6)


def test_a_step_says_what_it_could_have_missed() -> None:
    """A loss as large as it says is found about half the time with as many requests."""
    (seen,) = [r for r in judged().results() if r.gate == "tok_s"]
    assert seen.could_miss is not None
    assert "may still be missed" in seen.sentence()
    assert Gates().tolerance < seen.could_miss < 0.1
    found = [bool(judged(tok_s=1 - 1.6 * seen.could_miss).failed()) for _ in range(5)]
    missed = [bool(judged(tok_s=1 - 0.6 * seen.could_miss).failed()) for _ in range(5)]
    assert all(found)
    assert not any(missed)


def test_few_requests_of_a_session_are_judged(tmp_path: Path) -> None:
    """The others count for a step's number of requests alone."""
    log = tmp_path / "decisions.jsonl"
    lines = [line(100 + n, "canary", "k3", (8,), session_id=f"s{n % 2}") for n in range(20)]
    log.write_text("".join(lines))
    reader = RequestLog([log], Gates(window_s=5), started_at=0)
    reader.read(now=200)
    assert reader.num_canary_in_windows == 20
    assert reader.keeper.num_canary == reader.summary()["num_judged"] == 6


def test_simulated_rollouts_hold_alpha_and_find_5_percent() -> None:
    """The short form of benchmarks/rollout_gates.py: no false abort, every slow task found."""
    result = run(rollouts=3, num_canary=600, seed=3)
    aborted = {case["case"]: case["aborted"] for case in result["cases"]}
    assert aborted["equal"] == aborted["slower by the tolerance"] == 0
    assert aborted["one of 4 tasks 5% slower"] == aborted["one of 13 tasks 5% slower"] == 3


def line(
    at_s: float, side: str, variant: str, accepted: tuple[int, ...],
    session_id: str | None = None, **outcome: object,
) -> str:  # fmt: skip
    """A line of a decision log."""
    values = asdict(
        Outcome(
            len(accepted), 10, 10 * len(accepted), sum(accepted), accepted, 25, 0.1, 1.0, "stop"
        )
    )
    decision = {"now_s": at_s - 1.0, "side": side, "variant": variant, "task": TASKS[0],
                "session_id": session_id}  # fmt: skip
    return json.dumps({"decision": decision, "outcome": {**values, **outcome}}) + "\n"


def test_evidence_follows_from_the_log_alone(tmp_path: Path) -> None:
    """Reading in two goes, across a rotation, or again from the start gives the same numbers."""
    log = tmp_path / "decisions.jsonl"
    lines = [
        line(100 + n / 10, side, f"k3{side}", (8, 5, 3))
        for n in range(200)
        for side in ("stable", "canary")
    ]
    reader = RequestLog([log], Gates(window_s=5), started_at=0)
    log.write_text("".join(lines[:150]) + lines[150][:20])
    reader.read(now=109)
    log.write_text("".join(lines[:200]))  # in place: the inode stays
    reader.read(now=112)
    log.rename(tmp_path / "decisions.jsonl.1")
    log.write_text("".join(lines[200:]))
    reader.read(now=200)
    again = RequestLog([log], Gates(window_s=5), started_at=0)
    again.read(now=200)
    assert reader.summary() == again.summary()
    assert reader.keeper.num_canary == 200


def test_different_draft_lengths_are_compared_over_what_both_draft(tmp_path: Path) -> None:
    """K = 1 accepts less than K = 3 and is no failure for that."""
    log = tmp_path / "decisions.jsonl"
    lines = [line(100 + n / 50, "stable", "k3", (8, 5, 3)) for n in range(500)]
    lines += [line(100 + n / 50, "canary", "k1", (8,)) for n in range(500)]
    log.write_text("".join(lines))
    reader = RequestLog([log], Gates(window_s=1), started_at=0)
    reader.read(now=200)
    (result,) = [r for r in reader.keeper.results() if r.gate == "acceptance_length"]
    assert (result.change, result.is_failed) == (0.0, False)


def test_other_lines_are_passed_over(tmp_path: Path) -> None:
    """Requests of before, without a side or cancelled, and broken lines, count for nothing."""
    log = tmp_path / "decisions.jsonl"
    log.write_text(
        line(5, "canary", "k3", (1,))
        + line(100, "", "k3", (1,))
        + line(100, "canary", "k3", (1,), finish_reason="cancelled")
        + line(100, "canary", "k3", (1,), finish_reason="refused")
        + "no JSON\n{}\n"
        + line(100, "canary", "k3", (1,))
    )
    reader = RequestLog([log], Gates(), started_at=50)
    reader.read(now=1000)
    assert reader.num_canary == 1
    assert list(LogTail(tmp_path / "absent").new_lines()) == []


def test_a_log_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    """As logrotate's copytruncate does, again and again."""
    log = tmp_path / "decisions.jsonl"
    tail = LogTail(log)
    for content in (b"a\nb\nc\n", b"d\n", b"e\n", b""):
        log.write_bytes(b"")
        assert list(tail.new_lines()) == []
        log.write_bytes(content)
        assert list(tail.new_lines()) == content.splitlines()
