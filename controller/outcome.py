"""The outcome of a request: all that a policy learns from."""

import itertools
import math
from dataclasses import dataclass

from trt_mtp.controller.position_counts import trials

REFUSED = "refused"
MAX_COUNT = 1e9  # of an answer's tokens, steps or seconds


@dataclass(frozen=True, slots=True)
class MeanLoad:
    """What was in flight while an answer was generated, itself included: the mean over that time.

    An answer's steps ran at that load, and not at the one that its decision found.
    """

    requests: float
    context_tokens: float  # of all of them together


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished request; the counters are zero if the variant reported none.

    `finish_reason` is the variant's ("stop", "length", "cancelled", "error"), or "cancelled"
    where the client left, "error" where the answer broke off, and "refused" for a wrong request,
    which says nothing of the variant.
    """

    draft_length: int  # as decided; under a schedule the batch may have changed it on the way
    num_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    accepted_per_position: tuple[int, ...]  # [K], steps whose first j+1 drafts were accepted
    num_output_tokens: int
    ttft_s: float | None  # None if nothing was answered
    duration_s: float
    finish_reason: str
    cut_after: int = -1  # drafts accepted in a last step that the answer's end cut; -1: none was
    seed: int | None = None  # of the variant that ended the answer; None if it told none
    on_variant: MeanLoad | None = None  # None where nobody took it
    on_device: MeanLoad | None = None  # of all variants that share the variant's device


def outcome_problem(outcome: Outcome) -> str | None:
    """Why an outcome can't be learned from; None if it can."""
    if outcome.finish_reason in ("error", REFUSED):
        return "it failed" if outcome.finish_reason == "error" else "it was refused"
    times = [outcome.duration_s] if outcome.ttft_s is None else [outcome.ttft_s, outcome.duration_s]
    if not all(math.isfinite(t) and t >= 0 for t in times) or times != sorted(times):
        return "its times can't be right"
    if not all(_can_be(load) for load in (outcome.on_variant, outcome.on_device)):
        return "its load can't be right"
    counts = (
        outcome.num_steps,
        outcome.num_draft_tokens,
        outcome.num_accepted_draft_tokens,
        outcome.num_output_tokens,
    )
    if min(counts) < 0:
        return "a count is negative"
    if max(counts) > MAX_COUNT or outcome.duration_s > MAX_COUNT:
        return "a number is beyond reason"
    positions = (outcome.num_steps, *outcome.accepted_per_position, 0)
    if any(a < b for a, b in itertools.pairwise(positions)):
        return "more drafts were accepted than were reached"
    tried = trials(outcome.num_steps, outcome.accepted_per_position, outcome.cut_after)
    if any(a < b for a, b in zip(tried, outcome.accepted_per_position, strict=True)):
        return "a step was cut that had ended"
    return None


def _can_be(load: MeanLoad | None) -> bool:
    if load is None:
        return True
    return 0.99 <= load.requests < MAX_COUNT and 0 <= load.context_tokens < MAX_COUNT
