"""The outcome of a request: all that a policy learns from."""

from dataclasses import dataclass

REFUSED = "refused"


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
