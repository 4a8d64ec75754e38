"""What a policy sees of a variant, and what it decided: plain values that round-trip JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.errors import InputError


@dataclass(frozen=True, slots=True)
class VariantState:
    """One hosted variant as it is now."""

    name: str
    draft_length: int  # that it was built for
    is_healthy: bool
    num_running: int  # requests in flight on it
    max_batch_size: int
    max_seq_len: int  # tokens, prompt and answer together
    device: str = ""  # variants on the same one may share it, see Profile.shared_device
    is_full: bool = False  # it may not be sent more than it has
    schedule: BatchSchedule | None = None  # by which it drafts less where its batch is large

    def length_with_one_more(self) -> int:
        """The draft length at which it runs once it has another request."""
        if self.schedule is None:
            return self.draft_length
        return self.schedule.draft_length(min(self.num_running + 1, self.max_batch_size))


class CandidateScore(NamedTuple):
    """One variant's expected time for one request, in parts; `rejected` says why it can't serve."""

    variant: str
    draft_length: int  # at this load
    load: int = 0  # requests in flight on its device, this one included
    acceptance_length: float = 0.0  # expected tokens per step
    step_s: float = 0.0
    wait_s: float = 0.0  # until a slot is free
    prefill_s: float = 0.0  # of leaving the conversation's cache
    total_s: float = 0.0  # wait + prefill + answer
    score: float = 0.0  # 0..1, the best candidate's total_s over this one's
    rejected: str = ""


class Decision(NamedTuple):
    """Where a request goes, and all that is needed to explain, replay and learn from it."""

    decision_id: str
    variant: str
    draft_length: int
    task: str
    task_probabilities: tuple[tuple[str, float], ...]  # the likely tasks, most likely first
    temperature_band: str
    thinking: bool
    reasons: tuple[str, ...]
    candidates: tuple[CandidateScore, ...]
    explored: bool
    seed: int
    now_s: float
    session_id: str | None = None
    tenant: str | None = None
    side: str = ""  # "stable" or "canary" where a traffic file divides the requests

    @property
    def chosen(self) -> CandidateScore:
        """The candidate that was picked."""
        return next(c for c in self.candidates if c.variant == self.variant)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with stable keys."""
        record = self._asdict()
        record["task_probabilities"] = dict(self.task_probabilities)
        record["reasons"] = list(self.reasons)
        record["candidates"] = [candidate._asdict() for candidate in self.candidates]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Decision":
        """The decision that `to_json` wrote; raises InputError for anything else."""
        try:
            values = {name: record[name] for name in cls._fields if name != "side"}
            values["side"] = record.get("side", "")  # logs from before rollouts have none
            values["task_probabilities"] = tuple(values["task_probabilities"].items())
            values["reasons"] = tuple(values["reasons"])
            values["candidates"] = tuple(CandidateScore(**c) for c in values["candidates"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a decision record: {error} is missing or wrong") from None
        return cls(**values)
