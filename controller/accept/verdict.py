"""The verdict of one check, in words and numbers that may leave this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trt_mtp.serve.divergence import first_difference
from trt_mtp.serve.verify import EXACT_TOKENS

VerdictStatus = Literal["passed", "noted", "failed", "not tried"]
CheckName = Literal[
    "stream", "draft-lengths", "seed", "stop-text", "concurrency", "cancel", "failover", "recovery"
]

# code -> what it says; a verdict holds no other words
REASONS = {
    "request-failed": "a request failed",
    "one-message": "a streamed answer of several tokens came in one message",
    "no-answer": "an answer has no token, or no reason for its end",
    "other-count": "num_output_tokens is not the number of tokens that came",
    "other-variant": "a request for a draft length was answered by another variant",
    "other-tokens": "an answer left the one without speculation where it must not",
    "drifts": "greedy answers part late or at near ties, as real kernels' do",
    "seed-not-told": "the answer to a request without a seed doesn't tell the drawn one",
    "seed-not-repeated": "the told seed gave another answer at the same draft length",
    "seed-constant": "two requests without a seed were told the same one",
    "not-stopped": "an answer went on after its stop text",
    "no-stop-text": "the answers have no text to stop at",
    "not-freed": "the request of a client that left was still running",
    "too-short": "every answer was over before it could be disturbed",
    "one-variant": "it takes two variants at a time, and one is hosted",
    "not-failed-over": "a variant's process was killed, and no answer went on elsewhere",
    "no-process": "the process of the variant was not found",
    "not-back": "the killed variant did not answer again in time",
    "positions-untold": "accepted drafts are not told by position, so the gateway learns nothing",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended; `noted` is no failure, but differs from what the docs lead to expect."""

    status: VerdictStatus
    reason: str = ""  # a key of REASONS
    numbers: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""  # for the terminal and the journal: it may name paths


def passed(**numbers: float) -> Verdict:
    """All as it must be."""
    return Verdict("passed", "", numbers)


def failed(reason: str, **numbers: float) -> Verdict:
    """Not as it must be."""
    return Verdict("failed", reason, numbers)


def noted(reason: str, **numbers: float) -> Verdict:
    """No failure, and worth telling."""
    return Verdict("noted", reason, numbers)


def not_tried(reason: str, **numbers: float) -> Verdict:
    """This deployment can't show it."""
    return Verdict("not tried", reason, numbers)


def leaves_at(expected: tuple[int, ...], got: tuple[int, ...]) -> int | None:
    """The token at which an answer leaves the expected one; None if it doesn't.

    >>> leaves_at((7, 8, 9), (7, 8, 5)), leaves_at((7,), (7,))
    (2, None)
    """
    return None if expected == got else first_difference(expected, got)


@dataclass(frozen=True, slots=True)
class Parting:
    """Where an answer left the expected one."""

    position: int
    is_near_tie: bool = False  # two tokens were as good as equal there

    @property
    def is_early(self) -> bool:
        """Whether kernels that round differently don't explain it."""
        return self.position < EXACT_TOKENS and not self.is_near_tie


def compared(partings: Sequence[Parting | None], is_exact: bool, **numbers: float) -> Verdict:
    """The verdict on answers that left the expected ones so, None where they did not.

    The CPU engine's must be equal; those of others up to EXACT_TOKENS, but for near ties.
    """
    left = [parting for parting in partings if parting is not None]
    if not left:
        return passed(num_answers=len(partings), **numbers)
    told = {
        "num_answers": len(partings),
        "num_left": len(left),
        "first_left_at": min(parting.position for parting in left),
        "num_near_ties": sum(parting.is_near_tie for parting in left),
        **numbers,
    }
    if is_exact or any(parting.is_early for parting in left):
        return failed("other-tokens", **told)
    return Verdict("passed", "drifts", told)
