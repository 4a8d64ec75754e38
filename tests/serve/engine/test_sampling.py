"""serve/engine/sampling.py: exact distributions, and draws that depend on nothing but the seed."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trt_mtp.serve.engine.sampling import NO_TOKEN, argmax, sample, uniform

NUM_DRAWS = 20_000
SIZE = 24

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]


def exact(logits: Logits, temperature: float, top_k: int, top_p: float) -> Floats:
    """The distribution to draw from, in float64: top-k, then top-p of what is left."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    kept = weights[order] / weights[order].sum()
    before = np.cumsum(kept) - kept
    order = order[before < top_p]
    result: Floats = np.zeros_like(weights)
    result[order] = weights[order] / weights[order].sum()
    return result


def draw(logits: Logits, temperature: float, top_k: int, top_p: float, u: float) -> int:
    """`sample` with its scratch."""
    return sample(logits, temperature, top_k, top_p, u, np.empty_like(logits))


def some_logits(seed: int, size: int = SIZE, scale: float = 2.0) -> Logits:
    """Logits as spread as a model's."""
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.7, 0, 1.0),
        (2.5, 0, 1.0),
        (1.0, 6, 1.0),
        (1.0, 0, 0.8),
        (0.8, 5, 0.9),
        (1.3, 100, 0.95),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-9),
    ],
)
def test_samples_have_the_exact_distribution(temperature: float, top_k: int, top_p: float) -> None:
    """Over 20,000 seeds, `sample` with `uniform` fits softmax, top-k and top-p by chi-square."""
    logits = some_logits(1)
    expected = exact(logits, temperature, top_k, top_p)
    counts = np.zeros(SIZE)
    for seed in range(NUM_DRAWS):
        counts[draw(logits, temperature, top_k, top_p, uniform(np.uint64(seed), 17))] += 1
    assert not counts[expected == 0].any()
    assert p_value(counts, expected) > 1e-4


def p_value(counts: Floats, expected: Floats) -> float:
    """Chi-square of counts against probabilities; cells with fewer than 5 expected are merged."""
    goal = expected * counts.sum()
    is_rare = goal < 5
    cells = np.append(counts[~is_rare], counts[is_rare].sum())
    goals = np.append(goal[~is_rare], goal[is_rare].sum())
    if len(cells) == 2 and goals[1] == 0:
        return 1.0
    is_used = goals > 0
    return float(stats.chisquare(cells[is_used], goals[is_used]).pvalue)


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    u=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_one_of_those_kept(
    logits: list[float], temperature: float, top_k: int, top_p: float, u: float
) -> None:
    """No draw falls outside top-k and top-p, for any logits, ties included."""
    row = np.array(logits, np.float32)
    token = draw(row, temperature, top_k, top_p, u)
    # a nucleus a hair larger, and near ties count as ties: float32 rounds
    kept = exact(row, temperature, top_k, min(1.0, top_p + 1e-5)) > 0
    assert row[token] >= row[kept].min() - 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-12, 1e-3])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.9), (3, 0.5)])
@pytest.mark.parametrize("u", [1e-9, 0.5, 0.999999])
def test_low_temperatures_end_in_greedy_decoding(
    temperature: float, top_k: int, top_p: float, u: float
) -> None:
    """Temperature 0, and every one so low that its inverse overflows, takes the largest logit."""
    logits = some_logits(3)
    assert draw(logits, temperature, top_k, top_p, u) == int(logits.argmax())


def test_greedy_takes_the_lowest_of_equals() -> None:
    """argmax is the first of the largest values, as numpy's and torch's."""
    assert argmax(np.array([1, 3, 2, 3], np.float32)) == 1


def test_ties_at_the_edge_of_top_k_keep_the_lower_ids() -> None:
    """top-k keeps exactly k tokens; of equal ones those with the lower ids."""
    row = np.array([1, 2, 1, 1], np.float32)
    drawn = {draw(row, 1.0, 2, 1.0, u) for u in np.linspace(0, 0.9999, 200)}
    assert drawn == {0, 1}


def test_extreme_logits_are_drawn_from() -> None:
    """Logits hundreds apart give no overflow and no token but the largest."""
    row = np.array([-1e30, -500, 0, 3e38, 1e3], np.float32)
    for u in (1e-9, 0.5, 0.99999):
        assert draw(row, 1.0, 0, 1.0, u) == draw(row, 1.0, 3, 0.9, u) == 3


def test_uniform_is_uniform_over_seeds_and_positions() -> None:
    """uniform() has no bias over neighbouring seeds, nor over the positions of one seed."""
    seeds = np.array([uniform(np.uint64(seed), 3) for seed in range(NUM_DRAWS)])
    positions = np.array([uniform(np.uint64(42), position) for position in range(NUM_DRAWS)])
    pairs = np.array([uniform(np.uint64(s), p) for s in range(100) for p in range(100)])
    for values in (seeds, positions, pairs):
        assert values.min() >= 0
        assert values.max() < 1
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(positions[:-1], positions[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(seeds, positions)[0, 1]) < 0.03


def test_uniform_takes_every_seed() -> None:
    """The whole range of seeds counts: the highest bits change the draws too."""
    draws = {uniform(np.uint64(seed), 0) for seed in (0, 1, 2**32, 2**63, 2**64 - 1)}
    assert len(draws) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_draw_nothing(value: float, temperature: float) -> None:
    """As after an overflow inside the model; the first or the last token would be as wrong."""
    logits = np.full(SIZE, value, np.float32)
    assert draw(logits, temperature, 0, 0.5, 0.5) == NO_TOKEN
