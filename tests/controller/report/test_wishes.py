"""The gain of a reader's own mix, and the loads at which their limits hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calibration_fixtures import TASKS, simulated_profile
from tests.conftest import CliResult
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import write_profile
from trt_mtp.controller.report.report import calibrated
from trt_mtp.controller.report.summary import Summary
from trt_mtp.controller.report.wishes import Wishes, limits_table, mix_gains, read_mix

Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def summary() -> Summary:
    """A calibration with every cell."""
    return calibrated(simulated_profile(), "p.json").summary


@given(st.dictionaries(st.sampled_from(TASKS), st.floats(0.01, 100), min_size=1))
def test_a_mix_gains_what_its_tasks_do(summary: Summary, mix: dict[str, float]) -> None:
    """Between its tasks' gains, whatever the shares sum to; routing isn't below one length."""
    for gain in mix_gains(summary, mix):
        best = [summary.best(task, gain.concurrency) for task in mix]
        gains = [one.speedup.value for one in best if one is not None]
        assert min(gains) - 1e-9 <= gain.over_none <= max(gains) + 1e-9
        assert gain.over_single >= 1 - 1e-9
        doubled = {task: 2 * share for task, share in mix.items()}
        again = next(g for g in mix_gains(summary, doubled) if g.concurrency == gain.concurrency)
        assert again.over_none == pytest.approx(gain.over_none)


def test_lengths_that_nobody_measured_gain_nothing() -> None:
    """A task of which no single length is known can't be compared; it is no error."""
    profile = simulated_profile(["qa", "coding"], [1, 3], [1])  # no draft length 0
    assert mix_gains(calibrated(profile, "p.json").summary, {"qa": 1.0}) == []


def test_limits_hold_up_to_a_load(summary: Summary) -> None:
    """Everything is within a limit that is large enough, and nothing within one of nothing."""
    top = str(summary.concurrencies[-1])
    wide = limits_table(summary, Wishes(ttft_p95_ms=1e9, tpot_p95_ms=1e9))
    assert {line[-1] for line in wide.lines} == {top}
    none = limits_table(summary, Wishes(tpot_p95_ms=1e-9))
    assert {line[-1] for line in none.lines} == {"none"}
    assert all("✗ TPOT" in cell for line in none.lines for cell in line[1:-1])


def test_a_decision_log_is_a_mix(tmp_path: Path) -> None:
    """The tokens that a gateway answered, by the task it took them for."""
    policy, log = Policy(), DecisionLog(tmp_path / "decisions.jsonl")
    for task in ("qa", "coding", "coding"):
        decision = policy.choose(request("Why?", hint_task=task), variants(0, 3), now_s=0.0)
        log.append(decision, outcome(3))
    log.close()
    mix = read_mix(str(tmp_path / "decisions.jsonl"))
    assert mix["coding"] == 2 * mix["qa"] > 0


def test_a_report_has_both(cli: Cli, tmp_path: Path) -> None:
    """In the page, as Markdown and as JSON; with the verdict, the contents and the next command."""
    write_profile(tmp_path / "p.json", simulated_profile(["qa", "coding"], [0, 1, 3], [1, 4]))
    call = ("report", tmp_path / "p.json", "--mix", "coding=3,math=1", "--ttft-p95-ms", "100")
    page = cli(*call).out
    for text in ("Not measured, and left out: math.", "Your limits", 'href="#p0-wish1"', "DECIDED"):
        assert text in page
    assert "trt-mtp " in page.partition("<code>")[2].partition("</code>")[0]
    text = cli(*call, "--format", "md").out
    assert "### Your mix" in text
    assert "### Your limits" in text
    (shown,) = json.loads(cli(*call, "--format", "json").out)["profiles"]
    assert [gain["concurrency"] for gain in shown["mix"]] == [1, 4]
    assert "DECIDED" in shown["verdict"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mix", "codng=1"), "'codng' is not a task; did you mean coding?"),
        (("--mix", "coding=x"), "'coding=x' should be like coding=0.5"),
        (("--mix", "coding=1,coding=2"), "coding is given twice"),
        (("--mix", "coding=-1"), "the share of coding must be above 0"),
        (("--mix", "math=1"), "none of math was measured; the profile has qa"),
        (("--mix", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--ttft-p95-ms", "0"), "--ttft-p95-ms"),
        (("-o", "p.pdf"), "no report can be written as .pdf"),
    ],
)
def test_wrong_wishes_are_named(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """One sentence, exit code 2."""
    write_profile(tmp_path / "p.json", simulated_profile(["qa"], [0, 1], [1]))
    result = cli("report", tmp_path / "p.json", *options)
    assert result.code == 2
    assert says in result.err
