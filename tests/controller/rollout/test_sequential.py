"""Evidence by betting: valid at every look, whatever the values."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.rollout.sequential import Evidence, paired

VALUES = st.lists(st.floats(-1, 1), max_size=40)


def test_a_fair_game_is_rarely_called_unfair() -> None:
    """Looking after every value, the chance that p falls to alpha is at most alpha."""
    random, alpha, num_false, num_games = np.random.default_rng(1), 0.05, 0, 400
    for _ in range(num_games):
        evidence = Evidence()
        for values in random.choice([-1.0, 1.0], (400, 1)):
            evidence.add(values)
        num_false += evidence.p_value <= alpha
    assert num_false <= alpha * num_games


def test_an_unfair_game_is_found() -> None:
    """A mean of 0.2 is proven within a few hundred values of +-1."""
    evidence = Evidence()
    evidence.add(np.random.default_rng(2).choice([-1.0, 1.0], 600, p=[0.4, 0.6]))
    assert evidence.p_value < 1e-3


@given(VALUES, VALUES)
def test_grouping_changes_nothing_that_was_not_looked_at(
    one: list[float], two: list[float]
) -> None:
    """Values one by one prove at least as much as together; the peak is kept."""
    together, apart = Evidence(), Evidence()
    together.add(np.array(one + two))
    for value in one + two:
        apart.add(np.array([value]))
    assert apart.num == together.num
    assert apart.p_value <= together.p_value * (1 + 1e-9)
    assert 0 < apart.p_value <= 1


@given(VALUES)
def test_evidence_is_never_taken_back(values: list[float]) -> None:
    """What was significant once stays so."""
    evidence, before = Evidence(), 1.0
    for value in values:
        evidence.add(np.array([value]))
        assert evidence.p_value <= before
        before = evidence.p_value


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 8))
def test_groups_use_a_value_once(num_canary: int, num_stable: int, most: int) -> None:
    """Each group has one value of the scarcer side and up to `most` of the other."""
    canary = np.arange(num_canary, dtype=float)
    stable = np.arange(num_stable, dtype=float) + 1000.0
    one, other = paired(canary, stable, most)
    assert len(one) == len(other) == min(num_canary, num_stable)
    used = [*one.ravel(), *other.ravel()]
    assert len(used) == len(set(used))
    assert set(one.ravel()) <= set(canary)
    assert set(other.ravel()) <= set(stable)
    assert one.size == 0 or min(one.shape[1], other.shape[1]) == 1
    assert max(one.shape[1], other.shape[1], 1) <= most
