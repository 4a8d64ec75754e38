"""What context costs, from two cells with long prompts beside the same two with short ones."""

import statistics
from collections.abc import Sequence

from trt_mtp.controller.calibrate.confidence import rounded
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.results import Results, Settings
from trt_mtp.controller.profile import ContextPrice


def context_price(results: Results) -> ContextPrice | None:
    """The two slopes of controller/context_cost.py; None if no long prompt was answered.

    A step's time is the median between two messages, which the reading of other prompts does not
    touch.
    """
    slopes = {arm.draft_length: _slope(results, arm.draft_length) for arm in results.long_arms}
    deepest = max(slopes, default=0)
    plain, drafting = slopes.get(0), slopes.get(deepest)
    if not deepest or plain is None or drafting is None:
        return None
    every = [answer for part in results.answers.values() for answer in part]
    return ContextPrice(
        at_tokens=rounded(_mean_tokens(every)),
        plain_s=rounded(max(plain, 0.0)),
        draft_s=rounded(max(drafting - max(plain, 0.0), 0.0) / deepest),
    )


def missing_price(settings: Settings, results: Results) -> str:
    """Why a price that was asked for is not known; empty if it is, or if none was asked for."""
    if not settings.context_tokens or context_price(results) is not None:
        return ""
    if not results.long_arms:
        return "the budget was spent before"
    errors = [answer.error for arm in results.long_arms for answer in arm.answers if answer.error]
    return errors[0] if errors else "no long prompt's answer came in two messages or more"


def _slope(results: Results, draft_length: int) -> float | None:
    """Seconds of a step per token in flight, at one draft length and the load of its long cell."""
    arms = [arm for arm in results.long_arms if arm.draft_length == draft_length]
    load = arms[0].block.concurrency
    long = [answer for arm in arms for answer in arm.answers if not answer.error]
    short = [
        answer
        for key, part in results.answers.items()
        if (key.draft_length, key.concurrency) == (draft_length, load)
        for answer in part
    ]
    step_s, short_step_s = _step_s(long), _step_s(short)
    if step_s is None or short_step_s is None:
        return None
    more_tokens = load * (_mean_tokens(long) - _mean_tokens(short))
    return (step_s - short_step_s) / more_tokens if more_tokens > 0 else None


def _step_s(answers: Sequence[Answer]) -> float | None:
    gaps = [gap for answer in answers for gap in answer.itl_s]
    return statistics.median(gaps) if gaps else None


def _mean_tokens(answers: Sequence[Answer]) -> float:
    """Tokens in the cache of an answer, on average: its prompt and half of itself."""
    return statistics.mean(a.num_input_tokens + a.num_output_tokens / 2 for a in answers)
