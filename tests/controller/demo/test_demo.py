"""What the demo makes of its measurements; the demo itself runs in .ci/run."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.controller.demo.answers import answer
from tests.policy_fixtures import outcome
from trt_mtp.controller.decision import CandidateScore, Decision
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.demo.demo import (
    Answers,
    draft_rows,
    interval,
    report,
    require_lossless,
    speed_rows,
)
from trt_mtp.controller.demo.reasons import read_decisions, reason_rows
from trt_mtp.errors import TrtMtpError

MODELS = {0: "qwen_mtp_k0", 2: "qwen_mtp_k2"}


def answers() -> Answers:
    """Two prompts, two rounds: draft length 2 is twice as fast, and routed took it."""
    return {
        "qwen_mtp_k0": [[answer(2.0), answer(2.0)], [answer(4.0), answer(4.0)]],
        "qwen_mtp_k2": [[answer(1.0, (8, 4))] * 2, [answer(2.0, (8, 4))] * 2],
        "routed": [
            [answer(1.0, (8, 4), variant="k2")] * 2,
            [answer(2.0, (8, 4), variant="k2")] * 2,
        ],
    }


def decisions(reason: str = "K=2 finishes first at load 1") -> dict[str, Decision]:
    """The decision that sent the routed answers to k2: it expected half the time of k0."""
    return {
        "d1": Decision(
            decision_id="d1", variant="k2", draft_length=2, task="coding",
            task_probabilities=(("coding", 1.0),), temperature_band="low", thinking=False,
            reasons=("text: function", reason),
            candidates=(
                CandidateScore("k0", 0, total_s=4.0, score=0.5),
                CandidateScore("k2", 2, total_s=2.0, score=1.0),
            ),
            explored=False, seed=0, now_s=0.0,
        )
    }  # fmt: skip


def test_a_task_says_what_was_chosen_and_why() -> None:
    """The reasons of a task's decisions, most frequent first, and what the policy expected."""
    other = answers()
    other["routed"] = [[answer(1.0, (8, 4), variant="k2")] * 2 for _ in range(2)]
    other["routed"][1] = [replace(part, decision_id="d2") for part in other["routed"][1]][:1]
    tie = decisions("K=2 ties with K=5: shorter wins")["d1"]
    known = {**decisions(), "d2": tie}
    [line] = report(MODELS, {"coding": []}, {"coding": other}, known)["tasks"]
    assert list(line["reasons"].items()) == [
        ("K=2 finishes first at load 1", 0.667),
        ("K=2 ties with K=5: shorter wins", 0.333),
    ]
    assert line["expected_speedup"] == 2.0
    assert list(reason_rows([line])) == [("coding", "K=2 finishes first at load 1 (67%)", "2.00")]


def test_answers_that_were_not_logged_have_no_reason() -> None:
    """A log that lost its lines costs the reasons and nothing else."""
    [line] = report(MODELS, {"coding": []}, {"coding": answers()}, {})["tasks"]
    assert (line["reasons"], line["expected_speedup"]) == ({}, None)
    assert list(reason_rows([line])) == [("coding", "not logged (100%)", "-")]


def test_reasons_are_read_from_a_gateways_log(tmp_path: Path) -> None:
    """What a gateway logged is found by the id that its answers carry."""
    log = DecisionLog(tmp_path / "log")
    log.append(decisions()["d1"], outcome(2))
    log.close()
    assert read_decisions(tmp_path / "log") == decisions()


def test_report_is_computed_from_the_answers() -> None:
    """Speeds, shares, acceptance and speed-up follow from the timed answers."""
    result = report(MODELS, {"coding": []}, {"coding": answers()}, decisions())
    line = result["tasks"][0]
    assert line["task"] == "coding"
    assert line["requests"] == 2
    assert line["acceptance_length"] == {"2": 2.2}  # 1 + (8 + 4) / 10
    assert line["acceptance_rate"] == 0.6  # 12 of 20 drafts
    assert line["chosen"] == {"2": 1.0}
    assert line["tok_s"] == {"none": 6.7, "best_static": 13.3, "routed": 13.3}
    assert line["best_static_k"] == 2
    assert line["speedup_routed"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert line["speedup_routed_decode"]["low"] == 2.053  # (4 - 0.1) / (2 - 0.1)
    assert line["lossless"] is True
    assert line["gateway_share"] == {"median": 0.0, "low": 0.0, "high": 0.0}
    assert result["overall"]["requests"] == 2


def test_what_the_way_through_the_gateway_takes_is_told() -> None:
    """Routed answers are compared with those of the draft length that they went to."""
    slower = answers()
    slower["routed"] = [[answer(t, (8, 4), variant="k2")] * 2 for t in (1.25, 2.5)]
    line = report(MODELS, {"coding": []}, {"coding": slower}, decisions())["tasks"][0]
    assert line["gateway_share"]["median"] == 0.2  # 1 - 2 / 2.5, and 1 - 1 / 1.25
    assert line["speedup_routed"]["median"] == 1.6


def test_a_changed_answer_is_seen_and_fails() -> None:
    """One differing token in one round makes the task not lossless, which is an error."""
    changed = answers()
    changed["routed"][1] = [answer(2.0, (8, 4), tokens=19, variant="k2"), changed["routed"][1][1]]
    result = report(MODELS, {"coding": []}, {"coding": changed}, decisions())
    assert result["tasks"][0]["lossless"] is False
    with pytest.raises(TrtMtpError, match=r"answers differ .* coding"):
        require_lossless(result)
    assert list(draft_rows(result))[1][-1] == "NO"


def test_answers_of_other_engines_may_part() -> None:
    """Then the table says how many did not, and speeds are of tokens, not of whole answers."""
    changed = answers()
    changed["routed"][1] = [answer(1.0, (8, 4), tokens=10, variant="k2")] * 2
    result = report(MODELS, {"coding": []}, {"coding": changed}, decisions(), must_agree=False)
    require_lossless(result)
    assert list(draft_rows(result))[1][-1] == "1 of 2"
    assert result["overall"]["speedup_routed"] == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_table_has_a_cell_for_each_column() -> None:
    """Every line of the table for people is as long as its head."""
    result = report(MODELS, {"coding": []}, {"coding": answers()}, decisions())
    for rows in (speed_rows, draft_rows):
        lines = list(rows(result))
        assert {len(line) for line in lines} == {len(lines[0])}
        assert lines[-1][0] == "all"


def test_interval_holds_the_median() -> None:
    """The bootstrap interval surrounds the median and is the same each time."""
    ratios = [1.0, 1.2, 1.1, 1.4, 0.9, 1.3]
    found = interval(ratios)
    assert found["low"] <= found["median"] <= found["high"]
    assert interval(ratios) == found
