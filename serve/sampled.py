"""Do two variants sample from the same distribution? A permutation test over their answers.

With sampling, TensorRT-LLM's answers depend on the draft length even at one seed: the offset of
its random numbers is `decoding_iter * (max_draft_len + 1) + position` (pull request 17599 in
NVIDIA/TensorRT-LLM). What must not depend on it is the distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Answers = Sequence[tuple[int, ...]]  # token ids of the answers to one prompt

LEVEL = 0.001  # a variant that samples rightly fails once in a thousand verifications
PERMUTATIONS = 9_999
CHUNK = 1_000  # permutations at a time; bounds memory


@dataclass(frozen=True, slots=True)
class SampledComparison:
    """How the sampled answers of a variant compare with those without speculation."""

    num_answers: int  # of each side
    num_tokens: int  # of each answer
    temperature: float
    p_value: float  # of answers as different as these, if the distributions are the same
    level: float = LEVEL

    @property
    def is_same(self) -> bool:
        """Whether the answers are such as one distribution gives."""
        return self.p_value >= self.level


def p_value(expected: Sequence[Answers], got: Sequence[Answers]) -> float:
    """The chance of a difference as large as that between `expected` and `got`, under one law.

    Both hold the answers by prompt. The statistic is the squared difference of how often each token
    comes at each position, summed over tokens, positions and prompts. Its distribution is that over
    permutations of the two sides within each prompt, so the level is exact however few answers
    there are.
    """
    observed, permuted = 0.0, np.zeros(PERMUTATIONS)
    rng = np.random.default_rng(0)
    for one, other in zip(expected, got, strict=True):
        counted = one_hot([*one, *other])
        sides = np.repeat(np.array([1, -1], np.float32), [len(one), len(other)])
        observed += float(((sides @ counted) ** 2).sum())
        for start in range(0, PERMUTATIONS, CHUNK):
            size = min(CHUNK, PERMUTATIONS - start)
            shuffled = rng.permuted(np.tile(sides, (size, 1)), axis=1)
            permuted[start : start + size] += ((shuffled @ counted) ** 2).sum(axis=1)
    as_large = int(np.sum(permuted >= observed * (1 - 1e-6)))
    return (1 + as_large) / (1 + PERMUTATIONS)


def one_hot(answers: Answers) -> npt.NDArray[np.float32]:
    """Which answer has which token at which position, [answers, pairs of position and token].

    Pairs that only one answer has are left out: they add the same to every permutation.
    """
    pairs: dict[tuple[int, int], list[int]] = {}
    for row, answer in enumerate(answers):
        for pair in enumerate(answer):
            pairs.setdefault(pair, []).append(row)
    shared = [rows for rows in pairs.values() if len(rows) > 1]
    counted = np.zeros((len(answers), len(shared)), np.float32)
    for column, rows in enumerate(shared):
        counted[rows, column] = 1
    return counted
