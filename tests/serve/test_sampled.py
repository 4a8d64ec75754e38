"""The test that tells whether two variants sample from the same distribution."""

import numpy as np

from trt_mtp.serve.sampled import LEVEL, p_value

PROMPTS, PER_PROMPT, TOKENS = 4, 32, 8


def answers(rng: np.random.Generator, weights: list[float]) -> list[list[tuple[int, ...]]]:
    """Answers whose tokens are drawn by `weights`; each repeats its first token half the time."""
    found = []
    for _ in range(PROMPTS):
        group = []
        for _ in range(PER_PROMPT):
            drawn = rng.choice(len(weights), TOKENS, p=weights)
            repeats = rng.random(TOKENS) < 0.5
            group.append(tuple(int(drawn[0] if r else t) for r, t in zip(repeats, drawn)))  # noqa: B905
        found.append(group)
    return found


def test_level() -> None:
    """Answers of one distribution give p-values that are uniform, dependent tokens or not."""
    rng = np.random.default_rng(1)
    law = [0.5, 0.3, 0.15, 0.05]
    values = [p_value(answers(rng, law), answers(rng, law)) for _ in range(24)]
    assert min(values) >= LEVEL
    assert 0.35 < np.mean(values) < 0.65
    assert 0.02 <= np.mean([value < 0.2 for value in values]) <= 0.4


def test_power() -> None:
    """Another distribution is found, also one in which a rare token comes twice as often."""
    rng = np.random.default_rng(2)
    law = [0.5, 0.3, 0.1, 0.1]
    assert p_value(answers(rng, law), answers(rng, [1, 0, 0, 0])) < LEVEL
    assert p_value(answers(rng, law), answers(rng, [0.3, 0.3, 0.2, 0.2])) < LEVEL


def test_same_answers() -> None:
    """Equal answers are as alike as can be."""
    found = answers(np.random.default_rng(3), [0.5, 0.5])
    assert p_value(found, found) == 1.0
