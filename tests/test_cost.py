"""Step times: interpolation, monotony, correction."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.cost import StepCost, between_lengths, interpolate
from trt_mtp.controller.profile import Profile


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
