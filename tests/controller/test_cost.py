"""Step times: interpolation, monotony, correction."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.cost import StepCost, between_lengths, interpolate
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile


def seen(cost: StepCost, draft_length: int, batch: int, factor: float, times: int) -> None:
    """Answers whose steps take `factor` times what the table says."""
    step_s = factor * table().step_s(draft_length, batch)
    for _ in range(times):
        cost.observe(draft_length, batch, 50 * step_s, 50)


def table() -> StepCost:
    return StepCost(((1, 0.02), (8, 0.03)), {1: ((1, 1.2), (8, 1.6)), 3: ((1, 1.6), (8, 2.4))})


def test_measured_points_are_kept() -> None:
    """R at a measured length and batch is the measured one."""
    assert table().ratio(3, 8) == pytest.approx(2.4)
    assert table().step_s(3, 8) == pytest.approx(0.072)


def test_batches_between_are_interpolated_and_beyond_are_flat() -> None:
    """R is linear in the logarithm of the batch and constant past the last one."""
    assert table().ratio(1, 1) < table().ratio(1, 3) < table().ratio(1, 8)
    assert table().ratio(1, 500) == table().ratio(1, 8)


def test_lengths_between_are_interpolated() -> None:
    """K = 2 lies between K = 1 and K = 3, and K = 5 on their line."""
    assert table().ratio(2, 1) == pytest.approx(1.4)
    assert table().ratio(5, 1) == pytest.approx(2.0)
    assert between_lengths([3], 5) == (3, 3, 0.0)


curves = st.dictionaries(
    st.integers(1, 300), st.floats(0.5, 9, allow_nan=False), min_size=1, max_size=5
)


@given(curves, curves)
def test_step_time_never_falls_with_load(plain: dict[int, float], ratios: dict[int, float]) -> None:
    """Whatever noise the table holds, a larger batch is never expected to be faster."""
    cost = Profile(plain_step_s=plain, step_ratio={2: ratios}).step_cost()
    times = [cost.step_s(2, batch) for batch in (1, 2, 3, 7, 20, 64, 301, 5000)]
    assert all(b >= a for a, b in pairwise(times))


def test_a_slower_length_is_learned_but_a_slower_machine_changes_no_choice() -> None:
    """What all lengths share is kept apart from what one length alone shows."""
    cost = table()
    for _ in range(300):
        cost.observe(1, 1, 2 * 100 * 0.024, 100)
        cost.observe(3, 1, 2 * 100 * 0.032, 100)
    assert cost.step_s(3, 1) / cost.step_s(1, 1) == pytest.approx(0.032 / 0.024, rel=0.02)
    assert cost.step_s(1, 1) == pytest.approx(0.048, rel=0.1)
    for _ in range(300):
        cost.observe(1, 1, 2 * 100 * 0.024, 100)
        cost.observe(3, 1, 4 * 100 * 0.032, 100)
    assert cost.step_s(3, 1) / cost.step_s(1, 1) == pytest.approx(2 * 0.032 / 0.024, rel=0.1)


@pytest.mark.parametrize("seconds", [float("nan"), math.inf, -1.0, 0.0, 1e6, 1e-9])
def test_times_that_cannot_be_change_nothing(seconds: float) -> None:
    """NaN, negative and clock-jump times are refused."""
    cost = table()
    assert not cost.observe(3, 1, seconds, 100)
    assert cost.step_s(3, 1) == pytest.approx(0.032)


def test_interpolation_is_exact_at_the_ends() -> None:
    """Outside its points a curve is flat."""
    assert interpolate(((2, 1.0), (4, 3.0)), 1) == 1.0
    assert interpolate(((2, 1.0), (4, 3.0)), 9) == 3.0


def test_an_error_of_one_length_is_expected_of_the_others() -> None:
    """Where R(1) was too high, R(3) was too; the less is known of it, the further from what ran."""
    cost = table()
    before = cost.step_s(3, 8) / cost.step_s(0, 8)
    seen(cost, 0, 8, 1.0, 50)
    seen(cost, 1, 8, 0.75, 50)
    assert cost.step_s(3, 8) / cost.step_s(0, 8) < 0.75 * before
    sure = cost.deviation_between((1, 8), (0, 8))
    assert (
        sure < cost.deviation_between((3, 8), (0, 8)) < cost.deviation_between((3, 200), (0, 200))
    )
    assert sure < 0.05


observed = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 500), st.floats(0.1, 9), st.integers(1, 40)),
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(observed, st.floats(0.05, 0.5))
def test_whatever_is_seen_is_learned_within_reason(
    answers: list[tuple[int, int, float, int]], deviation: float
) -> None:
    """Step times stay finite, what was seen becomes surer, and a restart changes nothing."""
    cost = StepCost(table().plain_step_s, table().ratios, deviation)
    for draft_length, batch, factor, times in answers:
        before = cost.deviation_between((draft_length, batch), (0, 1))
        seen(cost, draft_length, batch, factor, times)
        after = cost.deviation_between((draft_length, batch), (0, 1))
        assert after <= before + 0.01
        assert 0 < cost.step_s(draft_length, batch) < 10
    again = StepCost(table().plain_step_s, table().ratios, deviation)
    known = json.loads(json.dumps(cost.posterior.to_json()))
    again.restore(again.posterior.restored(known), cost.num_observed)
    for draft_length, batch in ((0, 1), (3, 8), (5, 100)):
        assert again.step_s(draft_length, batch) == pytest.approx(cost.step_s(draft_length, batch))


@pytest.mark.parametrize("times_three", [0.5, 1.8])
def test_the_best_length_of_another_machine_is_found(times_three: float) -> None:
    """A gateway without a profile finds what the published table rules out, in 1,000 requests.

    At 48 in flight that table says R(3) = 3.2. Here it is the half, or K = 3 still slower.
    """
    published, policy = Profile().step_cost(), Policy()
    lengths, chosen = (0, 1, 3), Counter[int]()
    for i in range(1000):
        hosted = variants(*lengths, load=47)
        decision = policy.choose(request(hint_task="coding"), hosted, now_s=0.0)
        k = decision.draft_length
        step_s = published.step_s(k, 48) * (1.0, times_three**0.5, 1.0, times_three)[k]
        answer = outcome(k, 0.9)
        policy.update(decision, replace(answer, duration_s=0.1 + step_s * (answer.num_steps - 1)))
        if i >= 500 and not decision.explored:
            chosen[k] += 1
    assert chosen.most_common(1)[0][0] == (3 if times_three < 1 else 0)
