"""A policy's view of a variant, and its decision: plain values that round-trip JSON."""

from functools import cache
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError

MAX_NUMBER = 1e15  # of a record that isn't damaged


class VariantState(NamedTuple):
    """The present state of one hosted variant."""

    name: str
    draft_length: int  # as built
    is_healthy: bool
    num_running: int  # requests in flight on it
    max_batch_size: int
    max_seq_len: int  # tokens, prompt and answer together
    device: str = ""  # variants on the same one may share it, see Profile.shared_device
    num_on_device: int = 0  # requests in flight there, those on variants not offered among them
    is_full: bool = False  # it may not be sent more than it has
    excluded: str = ""  # why it is not to have this request, whatever its state
    takes_min_tokens: bool = True  # it can hold end tokens back
    takes_guided: bool = True  # it can hold an answer to a grammar
    schedule: BatchSchedule | None = None  # by which it drafts less where its batch is large
    context_tokens: float | None = None  # of those in flight on it together; None: not known

    def length_with_one_more(self) -> int:
        """Its draft length if it gets one more request."""
        if self.schedule is None:
            return self.draft_length
        return self.schedule.draft_length(min(self.num_running + 1, self.max_batch_size))


class CandidateScore(NamedTuple):
    """One variant's expected time for one request, in parts, or why it was `rejected`."""

    variant: str
    draft_length: int  # at this load
    load: int = 0  # requests in flight on its device, this one included
    context_tokens: float = 0.0  # of all of them together, half of this one's answer included
    acceptance_length: float = 0.0  # expected tokens per step
    step_s: float = 0.0
    wait_s: float = 0.0  # until a slot is free
    prefill_s: float = 0.0  # of leaving the conversation's cache
    total_s: float = 0.0  # wait + prefill + answer
    score: float = 0.0  # 0..1, the best candidate's total_s over this one's
    rejected: str = ""


class Decision(NamedTuple):
    """The variant for a request, with all that explaining, replaying and learning need."""

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
    app: str | None = None  # named by its system prompt
    side: str = ""  # "stable" or "canary"; empty without a traffic file
    prompt_tokens: int | None = None  # estimated where the prompt is text

    @property
    def chosen(self) -> CandidateScore:
        """The picked candidate."""
        return next(c for c in self.candidates if c.variant == self.variant)

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON, with stable keys."""
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
            raise _not_a_record(first_problem(error, cls._fields)) from None
        _check_consistent(decision)
        return decision


@cache
def _reader() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def _check_consistent(decision: Decision) -> None:
    """Raise InputError for a record whose parts contradict each other."""
    if not any(
        c.variant == decision.variant and c.draft_length == decision.draft_length and not c.rejected
        for c in decision.candidates
    ):
        raise _not_a_record(f"its variant {decision.variant!r:.40} is none of its candidates")
    shares = dict(decision.task_probabilities)
    for task in (decision.task, *shares):
        if task not in TASKS:
            raise _not_a_record(f"{task!r:.40} is not a task")
    if not shares or not all(0 <= share <= 1 for share in shares.values()):
        raise _not_a_record("its task_probabilities are none")
    able = [c for c in decision.candidates if not c.rejected]
    if not all(0 <= part < MAX_NUMBER for c in able for part in c[1:10]):
        raise _not_a_record("a candidate's number can't be right")


def _not_a_record(why: str) -> InputError:
    return InputError(f"not a decision record: {why}")
