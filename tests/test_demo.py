"""What the demo makes of its measurements; the demo itself runs in .ci/run."""

from pathlib import Path

import pytest

from trt_mtp.controller.client import TimedAnswer
from trt_mtp.controller.demo import (
    Answers,
    interval,
    read_prompts,
    report,
    require_lossless,
    rows,
)
from trt_mtp.errors import InputError, TrtMtpError

MODELS = {0: "qwen_mtp_k0", 2: "qwen_mtp_k2"}


def answer(
    duration_s: float,
    accepted: tuple[int, ...] = (),
    steps: int = 10,
    tokens: int = 20,
    variant: str = "",
) -> TimedAnswer:
    """An answer of `tokens` tokens that took `duration_s`."""
    return TimedAnswer(
        "text", tuple(range(tokens)), 0.1, duration_s, steps, accepted, variant, "coding"
    )


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


def test_report_is_computed_from_the_answers() -> None:
    """Speeds, shares, acceptance and speed-up follow from the timed answers."""
    result = report(MODELS, {"coding": []}, {"coding": answers()})
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
    assert result["overall"]["requests"] == 2


def test_a_changed_answer_is_seen_and_fails() -> None:
    """One differing token in one round makes the task not lossless, which is an error."""
    changed = answers()
    changed["routed"][1] = [answer(2.0, (8, 4), tokens=19, variant="k2"), changed["routed"][1][1]]
    result = report(MODELS, {"coding": []}, {"coding": changed})
    assert result["tasks"][0]["lossless"] is False
    with pytest.raises(TrtMtpError, match=r"answers differ .* coding"):
        require_lossless(result)


def test_table_has_a_cell_for_each_column() -> None:
    """Every line of the table for people is as long as its head."""
    lines = list(rows(report(MODELS, {"coding": []}, {"coding": answers()})))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[-1][0] == "all"


def test_interval_holds_the_median() -> None:
    """The bootstrap interval surrounds the median and is the same each time."""
    ratios = [1.0, 1.2, 1.1, 1.4, 0.9, 1.3]
    found = interval(ratios)
    assert found["low"] <= found["median"] <= found["high"]
    assert interval(ratios) == found


@pytest.mark.parametrize("line", ["{", '{"task": "qa"}', "[]"])
def test_a_bad_prompt_line_is_named(tmp_path: Path, line: str) -> None:
    """A line that is no prompt is refused with its number."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match="line 1 is no prompt"):
        read_prompts(file)


def test_missing_prompts_are_named(tmp_path: Path) -> None:
    """A checkpoint without prompts can't be demonstrated, and the file is named."""
    with pytest.raises(InputError, match=r"prompts\.jsonl can't be read"):
        read_prompts(tmp_path / "prompts.jsonl")
