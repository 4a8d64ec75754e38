"""The integer program, against every fleet there is; and Erlang's formula."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.plan_fixtures import random_program
from trt_mtp.controller.plan.erlang import MAX_LOAD, allowed_load, erlang_c, waiting_share
from trt_mtp.controller.plan.modes import Mode, undominated
from trt_mtp.controller.plan.program import CHANGE, Problem, growth, solve


def price(problem: Problem, modes: Sequence[Mode], counts: Sequence[int]) -> float:
    """The objective of a fleet."""
    total = sum(counts) + problem.distinct * sum(count > 0 for count in counts)
    most = problem.most + sum(problem.present.values())
    if problem.present:
        for length in {*problem.present, *(mode.draft_length for mode in modes)}:
            own = sum(c for c, m in zip(counts, modes, strict=True) if m.draft_length == length)
            total += CHANGE / most * abs(own - problem.present.get(length, 0))
    return total


def can_serve(
    problem: Problem, modes: Sequence[Mode], counts: Sequence[int], loads: Sequence[float]
) -> bool:
    """Whether a fleet serves all tasks, by a transport problem of its own."""
    flows = [(t, m) for t in problem.rates for m, mode in enumerate(modes) if t in mode.busy_s]
    if {t for t, _ in flows} != set(problem.rates):
        return False
    served = [[float(t == task) for t, _ in flows] for task in problem.rates]
    busy = [
        [modes[m].busy_s[t] if m == own else 0.0 for t, m in flows] for own in range(len(modes))
    ]
    room = [load * max(count - problem.spare, 0) for load, count in zip(loads, counts, strict=True)]
    result = linprog(np.zeros(len(flows)), busy, room, served, list(problem.rates.values()))
    return bool(result.status == 0)


@pytest.mark.parametrize("block", range(10))
def test_the_program_equals_brute_force(block: int) -> None:
    """On twenty random cases each, no fleet of all there are is cheaper than the solver's."""
    for seed in range(20 * block, 20 * block + 20):
        problem, modes, loads = random_program(seed)
        fleets = itertools.product(range(problem.most + 1), repeat=len(modes))
        bounded = [counts for counts in fleets if sum(counts) <= problem.most]
        bounded.sort(key=lambda counts: price(problem, modes, counts))
        able = (counts for counts in bounded if can_serve(problem, modes, counts, loads))
        best = next(able, None)
        solution = solve(problem, modes, loads)
        assert (solution is None) == (best is None), seed
        if solution is not None and best is not None:
            assert can_serve(problem, modes, solution.counts, loads), seed
            found = price(problem, modes, solution.counts)
            assert found == pytest.approx(price(problem, modes, best), rel=2e-4), seed


def test_growth_is_what_the_replicas_carry() -> None:
    """Twice the replicas carry twice the traffic, and a solution at least its own."""
    modes = [Mode(0, 8, {"qa": 0.5}), Mode(3, 8, {"qa": 0.4, "coding": 0.2})]
    rates = {"qa": 2.0, "coding": 3.0}
    solution = solve(Problem(rates, 10), modes, [0.8, 0.8])
    assert solution is not None
    room = [0.8 * count for count in solution.counts]
    carried = growth(modes, room, rates)
    assert carried >= 1 - 1e-9
    assert growth(modes, [2 * one for one in room], rates) == pytest.approx(2 * carried)


def test_a_dominated_mode_is_left_out() -> None:
    """A mode stays only where no other serves its tasks in less time; of equals the first does."""
    fast, slow = Mode(1, 8, {"qa": 0.1, "rag": 0.2}), Mode(0, 8, {"qa": 0.2, "rag": 0.2})
    only = Mode(2, 4, {"coding": 0.9})
    assert undominated([slow, fast, only, fast]) == [fast, only]


@given(st.integers(1, 500), st.floats(0.01, 0.99))
def test_waiting_grows_with_load_and_falls_with_slots(slots: int, load: float) -> None:
    """Erlang's C is a probability that more slots at the same load lower."""
    share = erlang_c(slots, load * slots)
    assert 0 <= share <= 1
    assert erlang_c(2 * slots, load * 2 * slots) <= share + 1e-9
    assert waiting_share(slots, load, 1.0, 1.0) <= share
    if slots == 1:
        assert share == pytest.approx(load)  # M/M/1


@given(st.integers(1, 300), st.floats(0.01, 10), st.floats(0.1, 10))
def test_the_allowed_load_keeps_waits_short(slots: int, wait_s: float, service_s: float) -> None:
    """At the load that is allowed, one request in a hundred waits longer; at a higher one, more."""
    load = allowed_load(slots, wait_s, service_s)
    assert waiting_share(slots, load, wait_s, service_s) <= 0.01 + 1e-6
    if load < MAX_LOAD and not math.isclose(load, MAX_LOAD):
        assert waiting_share(slots, load + 0.001, wait_s, service_s) > 0.01
