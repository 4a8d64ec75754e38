"""Acceptance, learned from answers that end in the middle of a step, against the true one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.conclusions import accepted_steps
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.position_counts import PositionCounts
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams, SpeculationCounters, cut_after
from trt_mtp.serve.engine.sequence import Sequence as EngineSequence

EOS, STOP = 0, 1


class TextDouble:
    """An answer's text in which the token STOP completes a stop text."""

    def push(self, token: int) -> tuple[str, bool]:
        """No text, and whether the answer ends."""
        return "", token == STOP

    def flush(self) -> str:
        """Nothing was held back."""
        return ""


def outcomes(conditionals: Sequence[float]) -> list[float]:
    """The chance that a step accepts 0, 1, … K drafts."""
    chances, survival = [], 1.0
    for conditional in conditionals:
        chances.append(survival * (1 - conditional))
        survival *= conditional
    return [*chances, survival]


def expected_counts(conditionals: Sequence[float], length: int) -> tuple[list[float], list[float]]:
    """Exact expected trials and successes of an answer of `length` tokens, by the engine's rule.

    The first token is the prompt's. `visits[t]` is the chance that a step begins after t tokens.
    """
    k, chances = len(conditionals), outcomes(conditionals)
    visits = [0.0] * (length + 1)
    visits[1] = 1.0
    tried, succeeded = [0.0] * k, [0.0] * k
    for at in range(1, length):
        for accepted, chance in enumerate(chances):
            kept = min(accepted + 1, length - at)
            is_last = at + kept == length
            visits[at + kept] += visits[at] * chance
            counts = PositionCounts()
            positions = [int(j < kept - 1) for j in range(k)]
            counts.add(1, positions, 1.0, cut_after(kept, k) if is_last else -1)
            for j in range(k):
                tried[j] += visits[at] * chance * counts.trials[j]
                succeeded[j] += visits[at] * chance * counts.successes[j]
    return tried, succeeded


@settings(max_examples=40, deadline=None)
@given(
    conditionals=st.lists(st.floats(0.05, 0.98), min_size=1, max_size=7),
    length=st.integers(16, 1024),
)
def test_expectation_is_exact(conditionals: list[float], length: int) -> None:
    """Over all answers of a length, successes are exactly the true share of trials.

    That holds for max_tokens, and for EOS and stop texts whose place does not depend on drafts.
    """
    tried, succeeded = expected_counts(conditionals, length)
    for conditional, trials, successes in zip(conditionals, tried, succeeded, strict=True):
        assert trials > 0
        assert successes / trials == pytest.approx(conditional, rel=1e-9)


def simulate(
    rng: np.random.Generator, conditionals: Sequence[float], length: int, ending: int | None
) -> SpeculationCounters:
    """The counters of one answer of the real engine's bookkeeping over simulated steps.

    `ending` is the token that ends the answer at `length`; None ends it by max_tokens.
    """
    k = len(conditionals)
    chunks: list[Chunk] = []
    sampling = SamplingParams(max_tokens=length if ending is None else 10**6)
    text: object = TextDouble()
    sequence = EngineSequence(Request((5,), sampling), chunks.append, text, k)  # type: ignore[arg-type]
    done = 0
    while sequence.finish_reason is None:
        fails = np.flatnonzero(rng.random(k) >= conditionals)
        size = 1 if done == 0 else 1 + (int(fails[0]) if len(fails) else k)
        tokens = [7] * size
        if ending is not None and done < length <= done + size:
            tokens[length - done - 1] = ending
        sequence.advance(tokens, frozenset({EOS}), is_step=done > 0)
        done += size
    return chunks[-1].counters


@pytest.mark.parametrize(
    ("length", "ending", "num_answers"), [(16, None, 12000), (16, EOS, 12000), (17, STOP, 12000)]
)
def test_short_answers(length: int, ending: int | None, num_answers: int) -> None:
    """AL(K) of thousands of short answers is within 0.5% of the true one, learned or calibrated.

    Booking what was cut as rejected would make it more than 2 % too small.
    """
    conditionals = (0.85, 0.75, 0.7)
    true = acceptance_lengths(conditionals)[3]
    rng = np.random.default_rng(length)
    counters = [simulate(rng, conditionals, length, ending) for _ in range(num_answers)]
    counts = PositionCounts.total(_counted(one, one.cut_after) for one in counters)
    found = [s / t for s, t in zip(counts.successes[:3], counts.trials[:3], strict=True)]
    assert acceptance_lengths(found)[3] == pytest.approx(true, rel=0.005)
    answers = [
        Answer(
            num_steps=one.num_steps,
            accepted_per_position=one.accepted_per_position,
            cut_after=one.cut_after,
        )
        for one in counters
    ]
    steps = sum(one.num_steps for one in counters)
    assert 1 + sum(accepted_steps(answers, 3)) / steps == pytest.approx(true, rel=0.005)
    naive = 1 + sum(one.num_accepted_draft_tokens for one in counters) / steps
    assert naive < 0.98 * true


def _counted(counters: SpeculationCounters, cut: int) -> PositionCounts:
    counts = PositionCounts()
    counts.add(counters.num_steps, counters.accepted_per_position, 1.0, cut)
    return counts
