"""`trt-mtp profile`: show, diff, merge, check."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.calibrate_world import World, run
from tests.conftest import CliResult
from tests.large_profile import largest
from tests.variants import make_variant
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.profile_merge import merged
from trt_mtp.controller.position_counts import PositionCounts
from trt_mtp.controller.profile import Profile, profile_json, read_profile, write_profile
from trt_mtp.controller.profile_text import conclusion, is_decided, verdict
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]
WORLD = {"coding": 0.95, "writing": 0.55}
RATIOS = {1: {1: 1.2, 4: 1.6}, 3: {1: 1.5, 4: 2.4}}


def measured(
    created: str,
    seed: int,
    fingerprint: str = "f0",
    tasks: Sequence[str] = tuple(WORLD),
    **parts: str,
) -> Profile:
    """A profile as a calibration writes it."""
    world = World({task: WORLD[task] for task in tasks}, RATIOS, seed=seed)
    settings = world.settings(seed=seed)
    run_info = RunInfo(
        fingerprint, {"device": "double", **parts}, {}, created, "p", 0.0, 9, True, True
    )
    return profile_of(settings, run(world, settings), run_info)


@pytest.fixture(scope="module")
def early() -> Profile:
    """The first of two runs."""
    return measured("2026-01-01T00:00:00+00:00", 1)


@pytest.fixture(scope="module")
def late() -> Profile:
    """The second of them."""
    return measured("2026-02-01T00:00:00+00:00", 2)


def test_show_says_what_to_do(cli: Cli, tmp_path: Path, early: Profile) -> None:
    """The text names the best length and each task; as JSON it is the file again."""
    write_profile(tmp_path / "p.json", early)
    text = cli("profile", "show", tmp_path / "p.json").out
    assert early.calibration is not None
    assert text.startswith(conclusion(early.calibration))
    assert "best single draft length: K=" in text
    assert all(task in text for task in WORLD)
    assert "AL / R predicts each of" in text
    printed = cli("profile", "show", tmp_path / "p.json", "--json").out
    assert printed == (tmp_path / "p.json").read_text()
    write_profile(tmp_path / "default.json", Profile())
    assert "no calibration" in cli("profile", "show", tmp_path / "default.json").out


def test_diff_names_what_changed(cli: Cli, tmp_path: Path, early: Profile, late: Profile) -> None:
    """Equal files end with 0; others with 1 and each number before and after."""
    write_profile(tmp_path / "a.json", early)
    write_profile(tmp_path / "b.json", late)
    same = cli("profile", "diff", tmp_path / "a.json", tmp_path / "a.json")
    assert (same.code, same.out) == (0, "no difference\n")
    other = cli("profile", "diff", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert other.code == 1
    differences = json.loads(other.out)["differences"]
    assert any(line.startswith("R at K=3, 4 at a time: ") for line in differences)


def test_merge_pools_counts_and_joins_cells(
    cli: Cli, tmp_path: Path, early: Profile, late: Profile
) -> None:
    """Trials add up, and every cell of either is there once."""
    write_profile(tmp_path / "a.json", early)
    write_profile(tmp_path / "b.json", late)
    out = tmp_path / "m.json"
    assert cli("profile", "merge", tmp_path / "b.json", tmp_path / "a.json", "--out", out).code == 0
    joined = read_profile(out)
    key = "coding/greedy/direct"
    trials = [PositionCounts.from_json(p.posteriors[key]).trials[0] for p in (early, late, joined)]
    assert trials[2] == pytest.approx(trials[0] + trials[1])
    places = [
        {(c.task, c.draft_length, c.concurrency) for c in p.calibration.cells}
        for p in (early, late, joined)
        if p.calibration
    ]
    assert places[2] == places[0] | places[1]


def test_merging_advises_by_all_cells(cli: Cli, tmp_path: Path) -> None:
    """Each run measured other tasks; what is merged advises for all, as one run of all does."""
    first = measured("2026-01-01T00:00:00+00:00", 1, tasks=("coding",))
    second = measured("2026-02-01T00:00:00+00:00", 1, tasks=("writing",))
    write_profile(tmp_path / "a.json", first)
    write_profile(tmp_path / "b.json", second)
    out = tmp_path / "m.json"
    assert cli("profile", "merge", tmp_path / "a.json", tmp_path / "b.json", "--out", out).code == 0
    together = read_profile(out)
    assert together.calibration is not None
    advice = together.calibration.recommendation
    assert advice is not None
    world = World(WORLD, RATIOS, seed=1)
    assert {(b.task, b.concurrency) for b in advice.best} == {(t, c) for t in WORLD for c in (1, 4)}
    for best in advice.best:
        truth = {k: world.true_speedup(best.task, k, best.concurrency) for k in (0, 1, 3)}
        assert truth[best.draft_length] > 0.95 * max(truth.values())
        assert best.speedup.value == pytest.approx(truth[best.draft_length], rel=0.1)
    assert {c.task for c in together.calibration.crossovers} == set(WORLD)
    for length, curve in RATIOS.items():
        assert together.step_ratio[length] == pytest.approx(curve, rel=0.1)


def test_merging_one_run_with_itself_changes_little(early: Profile) -> None:
    """Fitted to its own cells, a profile gives the advice that it was written with."""
    again = merged([early, early])
    assert early.calibration is not None
    assert again.calibration is not None
    one, other = early.calibration.recommendation, again.calibration.recommendation
    assert one is not None
    assert other is not None
    for before, after in zip(one.best, other.best, strict=True):
        assert after.draft_length in (before.draft_length, *before.ties)
        assert after.speedup.value == pytest.approx(before.speedup.value, rel=0.06)


def test_profiles_without_cells_are_merged_too() -> None:
    """Typed-in numbers are joined; there is nothing to advise by."""
    joined = merged([Profile(acceptance={"qa": 0.5}), Profile(acceptance={"rag": 0.6})])
    assert joined.acceptance == {"qa": 0.5, "rag": 0.6}
    assert joined.calibration is None


def test_profiles_of_two_deployments_are_not_merged(
    cli: Cli, tmp_path: Path, early: Profile
) -> None:
    """Another fingerprint is refused with the parts that differ."""
    write_profile(tmp_path / "a.json", early)
    write_profile(tmp_path / "b.json", measured("2026-01-01T00:00:00+00:00", 1, "f1", device="y"))
    result = cli("profile", "merge", tmp_path / "a.json", tmp_path / "b.json", "--out", "x.json")
    assert result.code == 2
    assert "(device is y, not double): only profiles of one deployment" in result.err


def test_check_compares_with_what_is_there(
    cli: Cli, tmp_path: Path, early: Profile, doubles: TritonServer
) -> None:
    """A profile fits the variants it was measured on, in a folder or on a server, and no others."""
    file = tmp_path / "p.json"
    write_profile(file, early)
    make_variant(tmp_path / "engines", 0)
    fits = cli("profile", "check", file, "--engines", tmp_path / "engines")
    assert (fits.code, fits.out) == (0, "nothing wrong was found\n")
    assert cli("profile", "check", file, "--url", doubles.grpc_url).code == 0
    write_profile(file, early.model_copy(update={"fingerprint": "f9"}))
    for option in ("--engines", tmp_path / "engines"), ("--url", doubles.grpc_url):
        refused = cli("profile", "check", file, *option)
        assert refused.code == 2
        assert "measured on f9" in refused.err


def test_check_finds_contradictions(cli: Cli, tmp_path: Path, early: Profile) -> None:
    """Verify steps that get cheaper with the draft length, and impossible counts, are named."""
    assert early.calibration is not None
    cell = early.calibration.cells[1]
    wrong = cell.model_copy(
        update={"accepted_per_position": tuple(9**9 for _ in cell.accepted_per_position)}
    )
    calibration = early.calibration.model_copy(update={"cells": (wrong,)})
    ratios = {1: {1: 1.8}, 3: {1: 1.2}}
    write_profile(
        tmp_path / "p.json",
        early.model_copy(update={"step_ratio": ratios, "calibration": calibration}),
    )
    result = cli("profile", "check", tmp_path / "p.json")
    assert result.code == 1
    assert "R falls from 1.8 to 1.2 between K=1 and 3" in result.out
    assert "more drafts accepted than were reached" in result.out
    assert "contradicts itself in 2 places" in result.err


def test_a_profile_of_a_large_deployment_is_small() -> None:
    """13 tasks, 6 variants and 8 loads with every cell measured are below 200 KB."""
    profile = largest()
    text = profile_json(profile)
    assert len(text.encode()) < 200_000
    assert Profile.model_validate_json(text) == profile


def test_a_prior_is_a_profile_that_says_so(cli: Cli, tmp_path: Path) -> None:
    """A model and a GPU by name give the roofline's table, which is no measurement."""
    out = tmp_path / "prior.json"
    done = cli("profile", "prior", "qwen3.8-27b-fp8", "--gpu", "h100-80gb", "--out", str(out))
    assert done.code == 0, done.err
    assert "a prior, not a measurement" in done.err
    read = read_profile(out)
    assert 1.2 < read.step_cost().ratio(3, 1) < 1.6
    assert read.calibration is None
    for wrong in (("gpt-2", "h100-80gb"), ("qwen3.8-27b", "h101")):
        done = cli("profile", "prior", wrong[0], "--gpu", wrong[1], "--out", str(out))
        assert done.code == 2
        assert "known" in done.err


def test_a_disturbed_measurement_decides_nothing(early: Profile) -> None:
    """However clear its numbers are."""
    calibration = early.calibration
    assert calibration is not None
    num_answers = sum(cell.num_requests for cell in calibration.cells)
    for num, is_said in ((num_answers // 50, False), (num_answers // 20, True)):
        environment = {**calibration.environment, "disturbed_answers": str(num)}
        changed = calibration.model_copy(update={"environment": environment})
        assert conclusion(changed).startswith(f"UNDECIDED: {num} of {num_answers} ") is is_said
        assert not (is_said and is_decided(changed))


def test_the_verdict_is_the_first_line(early: Profile) -> None:
    """Decided, undecided or "don't speculate"; a choice that is open recommends nothing."""
    assert early.calibration is not None
    measured_advice = early.calibration.recommendation
    assert measured_advice is not None
    settled = tuple(replaced(best, may_lose=0.01) for best in measured_advice.best)
    advice = replaced(measured_advice, best=settled)
    assert verdict(advice).startswith("DECIDED: route by task and load, ")
    one = replaced(advice, hold_one=True)
    assert verdict(one) == (
        f"DECIDED: host one variant, K={advice.draft_length}; routing gains nothing sure"
    )
    opened = (replaced(advice.best[0], may_lose=0.21), *advice.best[1:])
    assert verdict(replaced(one, best=opened)).startswith(
        f"UNDECIDED: 1 of {len(opened)} choices may lose more than 5% against the best length, up "
        "to 21.0%; "
    )
    none = tuple(replaced(best, draft_length=0) for best in advice.best)
    assert verdict(replaced(advice, best=none)).startswith("DECIDED: don't speculate; ")
    assert verdict(None).startswith("UNDECIDED: ")


def replaced(record: Any, **changes: Any) -> Any:
    """A record with other values."""
    return record.model_copy(update=changes)
