"""What the demo's report is made of; the whole demo runs in .ci/run."""

from pathlib import Path

import pytest

from tests.controller.demo.answers import answer
from trt_mtp.build.variant import VariantRecord
from trt_mtp.controller.calibrate.prompt_sets import PromptSet
from trt_mtp.controller.calibration import CellKey
from trt_mtp.controller.client import Prompt, TimedAnswer
from trt_mtp.controller.demo.report import (
    LOADS,
    Measured,
    add_load,
    median_round,
    one_at_a_time,
    profile_from,
    write_report,
)
from trt_mtp.controller.profile import read_profile
from trt_mtp.serve.triton import TritonServer

MODELS = {0: "qwen_mtp_k0", 1: "qwen_mtp_k1", 3: "qwen_mtp_k3"}
RECORD = VariantRecord(
    schema_version=1, name="k0", engine="cpu", draft_length=0, checkpoint={}, versions={},
    device={}, max_batch_size=8, max_seq_len=512, shared="", created="", fingerprint="f0",
    measured_on={"engine": "cpu"},
)  # fmt: skip


def prompts(*tasks: str) -> PromptSet:
    """Twelve prompts a task."""
    part = tuple(Prompt([{"role": "user", "content": str(i)}], max_tokens=8) for i in range(12))
    return PromptSet("prompts.jsonl", "0123456789abcdef", dict.fromkeys(tasks, part))


STEP_S = {0: 0.1, 1: 0.13, 3: 0.19}
STEPS = {"coding": {0: 20, 1: 10, 3: 5}, "writing": {0: 20, 1: 18, 3: 17}}  # of twenty tokens
ACCEPTED = {"coding": {0: (), 1: (10,), 3: (5, 5, 5)}, "writing": {0: (), 1: (2,), 3: (2, 1, 0)}}


def timed(*tasks: str) -> dict[str, dict[str, list[list[TimedAnswer]]]]:
    """Ten prompts in two rounds: longer drafts are faster for coding, slower for writing."""
    found = {}
    for task in tasks:
        each = {
            k: answer(0.1 + STEPS[task][k] * step_s, ACCEPTED[task][k], STEPS[task][k])
            for k, step_s in STEP_S.items()
        }
        found[task] = {model: [[each[k]] * 2 for _ in range(10)] for k, model in MODELS.items()}
    return found


def measured(*tasks: str) -> Measured:
    """The cells of `timed`."""
    return one_at_a_time(prompts(*tasks), MODELS, timed(*tasks), first_prompt=2, seed=1)


def test_timed_answers_are_the_cells_at_one_request() -> None:
    """Each task and draft length is a cell, with the answers' counts and times."""
    profile = profile_from(measured("coding", "writing"), RECORD, 0.7)
    calibration = profile.calibration
    assert calibration is not None
    cells = {(c.task, c.draft_length): c for c in calibration.cells}
    assert set(cells) == {(t, k) for t in ("coding", "writing") for k in MODELS}
    cell = cells["coding", 3]
    assert (cell.concurrency, cell.num_requests, cell.num_output_tokens) == (1, 10, 200)
    assert cell.acceptance_length == pytest.approx(4)
    assert cell.ttft_ms.p50 == 100
    assert cell.speedup is not None
    assert cell.speedup.value == pytest.approx(20 * 0.1 / (5 * 0.19), rel=1e-3)
    assert profile.fingerprint == "f0"
    assert len(calibration.unmeasured) == 2 * len(MODELS) * len(LOADS)


def test_the_advice_follows_the_answers() -> None:
    """The page's advice is the length that was fastest for each task."""
    calibration = profile_from(measured("coding", "writing"), RECORD, 0.7).calibration
    assert calibration is not None
    assert calibration.recommendation is not None
    best = {b.task: b.draft_length for b in calibration.recommendation.best if b.concurrency == 1}
    assert best == {"coding": 3, "writing": 0}


def test_of_two_rounds_the_faster_counts() -> None:
    """Of an odd number of rounds it is the middle one."""
    rounds = [answer(3.0), answer(1.0), answer(2.0)]
    assert median_round(rounds).duration_s == 2.0
    assert median_round(rounds[:2]).duration_s == 1.0


def test_load_is_measured_until_the_time_is_spent(small_triton: TritonServer) -> None:
    """Every draft length is measured at every load; without time, none is."""
    cells = measured("coding")
    add_load(cells, small_triton.grpc_url, 0.0, lambda *_: None)
    assert not [key for key in cells.results.answers if key.concurrency > 1]
    seen: list[tuple[str, int, int]] = []
    add_load(cells, small_triton.grpc_url, 600.0, lambda *progress: seen.append(progress))
    assert seen[-1] == ("under load", len(LOADS), len(LOADS))
    keys = {key for key in cells.results.answers if key.concurrency > 1}
    assert keys == {CellKey("coding", k, load) for k in MODELS for load in LOADS}
    assert not cells.results.errors


def test_the_report_lies_beside_its_profile(tmp_path: Path) -> None:
    """The page says what to use, and the gateway can read the profile that it was made from."""
    profile = profile_from(measured("coding", "writing"), RECORD, 0.7)
    page = write_report(profile, tmp_path)
    assert "raft length 3 for coding; none for writing." in page.read_text()
    assert read_profile(page.with_name("demo-profile.json"), "f0") == profile
