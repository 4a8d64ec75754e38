"""What a policy sees of a variant, and what it decided: plain values that round-trip JSON."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError

MAX_NUMBER = 1e15  # of a record that isn't damaged


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
    def from_json(cls, record: Any) -> "Decision":
        """The decision that `to_json` wrote; raises InputError for anything else."""
        if not isinstance(record, dict) or not isinstance(record.get("task_probabilities"), dict):
            raise InputError("not a decision record")
        pairs = tuple(record["task_probabilities"].items())
        try:
            decision = _reader().validate_python({**record, "task_probabilities": pairs})
        except ValidationError as error:
            raise InputError(
                f"not a decision record: {first_problem(error, cls._fields)}"
            ) from None
        problem = _contradiction(decision)
        if problem:
            raise InputError(f"not a decision record: {problem}")
        return decision


@cache
def _reader() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def _contradiction(decision: Decision) -> str:
    """What in a record can't be true; an empty string where all can."""
    if not any(
        c.variant == decision.variant and c.draft_length == decision.draft_length and not c.rejected
        for c in decision.candidates
    ):
        return f"its variant {decision.variant!r:.40} is none of its candidates"
    shares = dict(decision.task_probabilities)
    for task in (decision.task, *shares):
        if task not in TASKS:
            return f"{task!r:.40} is no task"
    if not shares or not all(0 <= share <= 1 for share in shares.values()):
        return "its task_probabilities are none"
    able = [c for c in decision.candidates if not c.rejected]
    if not all(0 <= part < MAX_NUMBER for c in able for part in c[1:9]):
        return "a candidate's number can't be right"
    return ""
