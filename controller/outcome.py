"""What a request turned out to be: the only thing a policy learns from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished request; the counters are zero where the variant reported none.

    `finish_reason` is the variant's ("stop", "length", "cancelled", "error"), or "cancelled"
    where the client left and "error" where the answer broke off.
    """

    draft_length: int  # as decided; under a schedule the batch may have changed it on the way
    num_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    accepted_per_position: tuple[int, ...]  # [K], steps whose first j+1 drafts were accepted
    num_output_tokens: int
    ttft_s: float | None  # None when nothing was answered
    duration_s: float
    finish_reason: str
