"""Step costs by load and task, from batches whose truth is known."""

import itertools
import math
import random
from collections.abc import Mapping

import numpy as np
import pytest

from trt_mtp.controller.calibrate.results import Batch
from trt_mtp.controller.calibrate.step_costs import StepCosts, step_costs
from trt_mtp.controller.cost import Curve, StepCost

LENGTHS = (0, 1, 3, 5)
RATIOS = {1: 1.2, 3: 1.6, 5: 2.2}
TASKS = ("coding", "qa", "rag", "stem", "writing")


def batches(
    loads: tuple[int, ...] = (1, 8),
    tasks: tuple[str, ...] = TASKS,
    repeats: int = 1,
    *,
    noise: float = 0.01,
    own: Mapping[tuple[str, int], float] | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Batches of eight pairs; `own` is the logarithm of what a task costs beyond R at a load."""
    draw, found = random.Random(seed), []
    for load, task, _ in itertools.product(loads, tasks, range(repeats)):
        base = draw.gauss(0, noise)
        ratios = {}
        for length, ratio in RATIOS.items():
            mean = math.log(ratio * load**0.1) + (own or {}).get((task, load), 0.0)
            mean += draw.gauss(0, noise) - base
            ratios[length] = [mean + draw.gauss(0, 0.02) for _ in range(8)]
        found.append(Batch(task, load, ratios))
    return found


def costs(found: list[Batch]) -> StepCosts:
    """As a calibration finds them."""
    return step_costs(found, LENGTHS, (1, 8, 64), 400, np.random.default_rng(0))


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_intervals_hold_the_truth(noise: float) -> None:
    """Of many runs, at least nine in ten 95 % intervals of R hold it, whatever the noise."""
    held = []
    for seed in range(40):
        found = costs(batches(noise=noise, seed=seed))
        for load in (1, 8):
            low, high = np.quantile(found.by_load[load][1:], [0.025, 0.975], axis=0)
            truth = np.log([1.0, *(ratio * load**0.1 for ratio in RATIOS.values())])
            held += list((low <= truth) & (truth <= high))[1:]
    assert np.mean(held) >= 0.9


def test_the_first_row_is_near_the_truth() -> None:
    """R is found, and 0 has an R of 1."""
    found = costs(batches())
    assert np.exp(found.by_load[1][0]) == pytest.approx([1, *RATIOS.values()], rel=0.03)
    assert not found.by_load[1][:, 0].any()


def test_noise_is_not_taken_for_a_task_of_its_own() -> None:
    """Where batches vary, a single one that is slow says little of its task."""
    noisy = batches(noise=0.1, repeats=3)
    slow = [Batch(b.task, b.concurrency, {k: [v + 0.2 for v in part] for k, part in
            b.ratios.items()}) for b in batches(loads=(8,), tasks=("math",))]  # fmt: skip
    own = costs([*noisy, *slow]).by_cell["math", 8]
    assert own[0, 3] < 0.1


def test_a_task_that_costs_more_is_believed_when_it_is_seen() -> None:
    """With little noise, or the same again and again, what a task costs beyond R is its own."""
    own = {("rag", 8): 0.2, ("writing", 8): -0.15}
    found = costs(batches(own=own, repeats=3))
    for key, truth in own.items():
        assert (found.by_load[8] + found.by_cell[key])[0, 2] == pytest.approx(
            math.log(RATIOS[3] * 8**0.1) + truth, abs=0.03
        )
    # and a task that was not measured there may be as far off, at this load more than at the other
    assert found.by_chance[8][1:].std() > 0.05
    assert found.by_chance[8][1:].std() > 2 * found.by_chance[1][1:].std()


def test_what_was_never_measured_is_unsure() -> None:
    """A length or load without a batch is between free and K + 1, less sure than its neighbours."""
    few = [Batch("qa", 1, {1: [0.2] * 8, 3: [0.4] * 8}), Batch("rag", 8, {3: [0.9] * 8})]
    by_load = costs(few).by_load
    for load, at in ((1, 3), (8, 1), (64, 2)):
        assert 0.1 < by_load[load][1:, at].std() < math.log(LENGTHS[at] + 1) / 2
        assert 0 < by_load[load][0, at] < math.log(LENGTHS[at] + 1)
    deviations = [by_load[load][1:, 2].std() for load in (1, 8, 64)]
    assert deviations[2] > 1.5 * max(deviations[:2])


def test_few_batches_are_enough_to_say_something() -> None:
    """One batch with one pair gives finite draws that are far apart."""
    draws = costs([Batch("qa", 1, {3: [0.4]})]).by_load[1][:, 2]
    assert draws[0] == pytest.approx(0.4, abs=0.1)
    assert np.isfinite(draws).all()
    assert draws[1:].std() > 0.03


def test_a_table_says_what_was_not_measured() -> None:
    """A roofline's R is where it begins, as near as its deviation says; batches outweigh it."""
    curves: dict[int, Curve] = {1: ((1, 1.1), (64, 1.4)), 3: ((1, 1.3), (64, 2.0)), 5: ((1, 1.5),)}
    table = StepCost(((1, 0.02),), curves, 0.05)
    one = [Batch("qa", 1, {5: [math.log(1.5)] * 8})]
    found = step_costs(one, LENGTHS, (1, 8, 64), 400, np.random.default_rng(0), table)
    assert math.exp(found.by_load[64][0, 2]) == pytest.approx(2.0, rel=0.05)
    assert 0.01 < found.by_load[64][1:, 2].std() < 0.07
    known = step_costs(batches(), LENGTHS, (1, 8, 64), 400, np.random.default_rng(0), table)
    assert math.exp(known.by_load[1][0, 3]) == pytest.approx(RATIOS[5], rel=0.05)
