"""Intervals that hold however often one looks."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.calibrate.confidence import (
    design_effect,
    percentiles_ms,
    radius,
    ratio_interval,
)

VALUES = st.lists(st.floats(-1, 1), min_size=8, max_size=40).filter(
    lambda values: max(values) - min(values) > 1e-3
)


@given(VALUES)
def test_the_radius_is_where_the_e_value_reaches_its_bound(values: list[float]) -> None:
    """At that distance from the mean the t-test's e-value is 1/alpha; below it is less."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    y = radius(values) ** 2 * n / variance / (n - 1)
    evidence = (1 + n) ** -0.5 * ((1 + y) / (1 + y / (1 + n))) ** (n / 2)
    assert evidence == pytest.approx(1 / 0.05)


def test_looking_after_every_value_misses_rarely() -> None:
    """Of 300 sequences looked at 60 times each, no more than 5 % ever miss the mean."""
    draw = random.Random(1)
    missed = 0
    for _ in range(300):
        values = [draw.gauss(0.3, 0.2) for _ in range(60)]
        missed += any(abs(sum(values[:n]) / n - 0.3) > radius(values[:n]) for n in range(2, 61))
    assert missed <= 15


def test_few_values_say_little() -> None:
    """One value has no interval, a handful an infinite one; in a file it is cut to ten-fold."""
    assert radius([0.1]) == math.inf
    assert radius([0.1, 0.2, 0.3]) == math.inf
    found = ratio_interval([math.log(2.0)])
    assert (found.value, found.low, found.high) == (2.0, 0.2, 20.0)


@given(VALUES)
def test_an_interval_holds_its_value(values: list[float]) -> None:
    """Low, value and high are in order and finite."""
    found = ratio_interval(values)
    assert 0 < found.low <= found.value <= found.high < math.inf


def test_batches_that_vary_together_widen_the_interval() -> None:
    """Independent values have a design effect near 1, shifted batches a large one, few none."""
    draw = random.Random(3)
    alone = [[[draw.gauss(0, 1) for _ in range(8)] for _ in range(20)] for _ in range(3)]
    shifts = [[draw.gauss(0, 3) for _ in group] for group in alone]
    shifted = [
        [[value + shift for value in batch] for batch, shift in zip(group, own, strict=True)]
        for group, own in zip(alone, shifts, strict=True)
    ]
    assert 1 <= design_effect(alone) < 1.5
    assert 6 < design_effect(shifted) < 8.1
    assert design_effect([alone[0][:2]]) == 1.0
    values = alone[0][0]
    assert radius(values, 4.0) == pytest.approx(2 * radius(values))


def test_percentiles() -> None:
    """In milliseconds, between neighbours; nothing gives zeros."""
    assert percentiles_ms([0.001 * n for n in range(101)]) == (50.0, 95.0, 99.0)
    assert percentiles_ms([]) == (0.0, 0.0, 0.0)
