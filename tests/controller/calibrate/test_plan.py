"""What a calibration asks, and what it concludes, of deployments whose truth is known."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibrate_world import World, run
from trt_mtp.controller.calibrate.advice import crossing
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.fit import estimate
from trt_mtp.controller.calibrate.plan import ended, next_block
from trt_mtp.controller.calibrate.results import Results
from trt_mtp.controller.calibration import Calibration, CellKey, Recommendation
from trt_mtp.controller.profile import Profile, parse_profile, profile_json
from trt_mtp.controller.profile_text import summary

RUN_INFO = RunInfo(
    "f0", {"device": "x"}, {}, "2026-01-01T00:00:00+00:00", "p 0", 0.0, 200, True, True
)
TASKS = {"coding": 0.95, "qa": 0.8, "writing": 0.55}
# one that pays at low load, and one whose verify steps cost nearly as much as plain ones
RISING = {1: {1: 1.2, 4: 1.5, 16: 2.2}, 3: {1: 1.5, 4: 2.2, 16: 4.0}}
COSTLY = {1: {1: 2.2, 4: 2.4}, 2: {1: 3.3, 4: 3.6}}


def calibrated(world: World, **changes: object) -> tuple[Profile, Results]:
    """The profile of a world, and what was measured for it."""
    chosen = world.settings(**changes)
    results = run(world, chosen)
    return profile_of(chosen, results, RUN_INFO), results


def parts(profile: Profile) -> tuple[Calibration, Recommendation]:
    """What a calibrated profile always has."""
    assert profile.calibration is not None
    assert profile.calibration.recommendation is not None
    return profile.calibration, profile.calibration.recommendation


@given(
    st.dictionaries(
        st.sampled_from(["coding", "math", "qa", "rag", "writing"]),
        st.floats(0.4, 0.97),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.floats(0.05, 0.6), min_size=3, max_size=3),
    st.floats(1.0, 1.5),
    st.integers(0, 1000),
)
@settings(max_examples=12)
def test_the_recommended_length_is_right(
    acceptance: Mapping[str, float], costs: list[float], growth: float, seed: int
) -> None:
    """In any world, what is recommended loses little against the best, and 0 is never beaten."""
    ratios = {
        length: {
            load: (1 + sum(costs[:at])) * growth**power for power, load in enumerate((1, 4, 16))
        }
        for at, length in ((1, 1), (2, 2), (3, 4))
    }
    world = World(acceptance, ratios, seed=seed)
    _, advice = parts(calibrated(world, seed=seed)[0])
    assert len(advice.best) == 3 * len(acceptance)
    for best in advice.best:
        truth = {k: world.true_speedup(best.task, k, best.concurrency) for k in (0, *ratios)}
        assert truth[best.draft_length] > 0.9 * max(truth.values())
        assert best.speedup.value >= 1.0


def test_every_cell_and_the_plan_agree() -> None:
    """The plan measures fewer cells, and recommends what measuring all of them recommends."""
    world = World(TASKS, RISING)
    planned, few = calibrated(world)
    complete, every = calibrated(World(TASKS, RISING), all_cells=True)
    assert len(parts(planned)[0].unmeasured) > 0
    assert parts(complete)[0].unmeasured == ()
    assert few.elapsed_s < every.elapsed_s
    for one, other in zip(parts(planned)[1].best, parts(complete)[1].best, strict=True):
        assert (one.task, one.concurrency) == (other.task, other.concurrency)
        assert other.draft_length in (one.draft_length, *one.ties)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_factors_settle_what_was_not_measured(seed: int) -> None:
    """On a quiet machine less than half of the cells are measured and every choice is settled.

    What was settled loses little in truth, measured or not.
    """
    tasks = {"coding": 0.95, "math": 0.9, "qa": 0.8, "rag": 0.85, "stem": 0.7, "writing": 0.5}
    ratios = {k: {b: 1 + 0.13 * k * b**0.35 for b in (1, 2, 4, 8, 16)} for k in (1, 2, 3, 5)}
    world = World(tasks, ratios, noise=0.03, batch_noise=0.005, seed=seed)
    calibration, advice = parts(calibrated(world, seed=seed)[0])
    assert len(calibration.cells) < 0.5 * 6 * 5 * 5
    unmeasured = {(task, load) for task, _, load in calibration.unmeasured}
    assert any((best.task, best.concurrency) in unmeasured for best in advice.best)
    for best in advice.best:
        truth = {k: world.true_speedup(best.task, k, best.concurrency) for k in (0, *ratios)}
        assert truth[best.draft_length] > 0.93 * max(truth.values())


def test_every_prompt_is_asked_before_one_is_repeated() -> None:
    """New prompts teach acceptance; when all were asked, nothing more is to be known of it."""
    world = World({"qa": 0.8, "writing": 0.6}, RISING, num_prompts=40)
    chosen = world.settings()
    results = run(world, chosen)
    seen: set[int] = set()
    for prompts in dict.fromkeys(a.block.prompts for a in results.arms if a.block.task == "qa"):
        assert seen.isdisjoint(prompts) or seen | set(prompts) == set(range(40))
        seen |= set(prompts)
    everything = run(world, replace(chosen, all_cells=True))
    known = estimate(chosen, everything, of_prompts=True).acceptance["qa"]
    assert known[1:].std(axis=0).max() == pytest.approx(0, abs=1e-12)
    assert estimate(chosen, everything).acceptance["qa"][1:].std(axis=0).max() > 0.005


def test_a_noisy_machine_is_asked_again_and_a_killed_run_goes_on_so() -> None:
    """Where batches vary by 10%, prompts are asked up to four times, and most choices settle.

    The batches of its journal give the same next block.
    """
    world = World({"qa": 0.8, "writing": 0.6}, RISING, batch_noise=0.1, num_prompts=12)
    chosen = world.settings()
    results = run(world, chosen, budget_s=900)
    asked = Counter((arm.key, prompt) for arm in results.arms for prompt in arm.block.prompts)
    assert 1 < max(n for (key, _), n in asked.items() if key.draft_length) <= 5
    again, last = Results(), results.num_blocks - 1
    for arm in results.arms:
        if arm.block.number == last:
            assert next_block(chosen, again) == arm.block
            break
        again.add(arm)
    _, advice = parts(profile_of(chosen, results, RUN_INFO))
    assert advice.num_open <= 1


def test_a_plan_ends_when_nothing_more_can_be_told() -> None:
    """Two lengths that are as good, and too few prompts to tell them apart: it ends."""
    even = {1: {1: 1.3, 4: 1.5}, 3: {1: 1.75, 4: 2.0}}
    world = World({"qa": 0.6}, even, noise=0.4, num_prompts=8)
    results = run(world, world.settings(), max_blocks=100)
    assert results.num_blocks < 100


def test_step_costs_and_acceptance_are_found() -> None:
    """R comes out within a few percent and rises with the draft length; p in its order."""
    profile, _ = calibrated(World(TASKS, RISING))
    for length, curve in RISING.items():
        for load, ratio in curve.items():
            assert profile.step_ratio[length][load] == pytest.approx(ratio, rel=0.08)
    assert profile.step_ratio[1][16] <= profile.step_ratio[3][16]
    for task, p in TASKS.items():
        assert profile.acceptance[task] == pytest.approx(p, abs=0.05)
        assert f"{task}/greedy/direct" in profile.posteriors
    assert profile.plain_step_s[4] == pytest.approx(0.02 * 1.4, rel=0.1)


def test_where_speculation_never_pays_none_is_recommended() -> None:
    """Verify steps that cost more than they bring: K = 0 everywhere, one variant is enough."""
    _, advice = parts(calibrated(World(TASKS, COSTLY))[0])
    assert {best.draft_length for best in advice.best} == {0}
    assert advice.draft_length == 0
    assert advice.speedup.value == 1.0
    assert advice.hold_one


def test_crossovers_are_where_it_starts_to_lose() -> None:
    """A length that wins at 1 and loses at 16 crosses between; one that always wins does not."""
    calibration, _ = parts(calibrated(World(TASKS, RISING))[0])
    found = {(c.task, c.draft_length): c.concurrency for c in calibration.crossovers}
    assert found["coding", 1] is None or found["coding", 1] > 4
    writing = found["writing", 3]
    assert writing is not None
    assert 1 < writing < 16
    assert crossing((1, 2), (-0.1, 0.2)) == 1.0
    assert crossing((1, 2), (0.1, 0.2)) is None


def test_what_is_left_out_is_predicted_well() -> None:
    """Each cell's speedup follows from the others, within the noise of the cell itself."""
    calibration, _ = parts(calibrated(World(TASKS, RISING))[0])
    assert calibration.prediction is not None
    assert calibration.prediction.num_cells >= 6
    assert calibration.prediction.median_abs_error < 0.08
    total = len(calibration.cells) + len(calibration.unmeasured)
    assert total == 3 * 3 * 3


def test_a_task_that_fails_ends_alone() -> None:
    """A variant that errors on one task leaves that cell failed, and all else is measured."""
    world = World(TASKS, RISING, failing=frozenset({("qa", 3)}))
    profile, results = calibrated(world)
    assert results.errors[CellKey("qa", 3, 16)] == "the engine broke"
    calibration, advice = parts(profile)
    assert {best.task for best in advice.best} == set(TASKS)
    failed = [(c.task, c.draft_length) for c in calibration.cells if c.ended == "failed"]
    assert ("qa", 3) in failed
    assert {best.draft_length for best in advice.best if best.task == "qa"} <= {0, 1}
    assert "failed: qa at K=3, 16 at a time" in summary(profile)
    chosen = world.settings()
    assert ended(chosen, results, CellKey("qa", 3, 16)) == "failed"


def test_the_plan_depends_on_the_results_alone() -> None:
    """The same results give the same next block, whatever was asked before in this process."""
    world = World(TASKS, RISING)
    chosen = world.settings()
    whole = run(world, chosen, max_blocks=6)
    again = Results()
    for arm in whole.arms:
        again.add(arm)
    assert next_block(chosen, whole) == next_block(chosen, again)
    assert next_block(replace(chosen, seed=1), Results()) != next_block(chosen, Results())


def test_a_profile_survives_its_file() -> None:
    """What is measured is read back the same from the compact file."""
    import json

    profile, _ = calibrated(World(TASKS, RISING))
    assert parse_profile(json.loads(profile_json(profile)), "p.json") == profile
