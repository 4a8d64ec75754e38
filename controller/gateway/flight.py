"""A request to the public model, from its arrival to the end of its answer."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.gateway.answer import IDS, AnswerReader
from trt_mtp.controller.gateway.backend import Hosted
from trt_mtp.controller.gateway.kserve import (
    EMPTY_FINAL,
    InferRequest,
    int_input,
    int_outputs,
    parse_stream_response,
    readdressed,
    response_change,
    text_output,
    with_int_input,
    without_input,
)
from trt_mtp.controller.gateway.tenants import Tenant
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.serve.contract import COUNTERS

INT_OUTPUTS = COUNTERS | {"num_output_tokens"}
LEARNED_OUTPUTS = INT_OUTPUTS | {"finish_reason"}
EMITTED = "emitted_ids"  # the input for the ids of tokens that the client has already
MAX_ID_CHARS = 128  # of a client's request id that goes on to Triton


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on the variant that was decided for it."""

    variant: Hosted
    decision: Decision
    begun: int  # what Health.begin returned
    upstream_id: str  # the request's id as Triton knows it
    reader: AnswerReader
    parameters: dict[str, str]  # of every response
    change: bytes  # what makes a response of the variant's one of the public model's
    message: bytes  # the request as it goes to Triton
    is_running: bool = True


@dataclass(slots=True, eq=False)
class Flight:
    """A request on its way; `attempt` is the variant that has it now."""

    request: InferRequest
    features: RequestFeatures
    is_streaming: bool
    started_s: float = field(default_factory=time.monotonic)
    attempt: Attempt | None = None
    left: list[Hosted] = field(default_factory=list)  # variants that failed
    left_s: float = 0.0  # monotonic time when the last of them did
    blamed: list[Attempt] = field(default_factory=list)  # on some of them, if another one answers
    emitted: bytearray = field(init=False)  # INT32 ids of the tokens that the client has
    num_brought: int = field(init=False)  # bytes of them that it had before, and sent along
    first_s: float | None = None  # monotonic time of the first message to the client
    is_finished: bool = False  # and counted
    tenant: Tenant | None = None  # whose limits it counts for, until it is over

    def __post_init__(self) -> None:
        self.emitted = bytearray(int_input(self.request, EMITTED))
        self.num_brought = len(self.emitted)

    @property
    def client_id(self) -> str:
        """The request's id as the client knows it."""
        return str(self.request.message.id)

    @property
    def is_empty_final_wanted(self) -> bool:
        """Does the client want a final message that brings nothing?"""
        parameters = self.request.message.parameters
        return EMPTY_FINAL in parameters and bool(parameters[EMPTY_FINAL].bool_param)

    @property
    def has_tokens(self) -> bool:
        """Are there tokens that variants sent?"""
        return len(self.emitted) > self.num_brought

    @property
    def has_begun(self) -> bool:
        """Did any variant begin the answer?"""
        return self.has_tokens or self.first_s is not None

    @property
    def can_continue(self) -> bool:
        """Can another variant go on where the answer is?"""
        return self.has_tokens or self.first_s is None

    def leave(self, num_output_tokens: int) -> None:
        """The request is over for its tenant, who is charged what it took."""
        if self.tenant is not None:
            tenant, self.tenant = self.tenant, None
            tenant.end(num_output_tokens, time.monotonic())

    def attempt_on(self, variant: Hosted, decision: Decision, public_name: str) -> Attempt:
        """Begin on `variant`, after the tokens that the client has."""
        upstream_id = f"{self.client_id[:MAX_ID_CHARS]}/{decision.decision_id}".lstrip("/")
        parameters = {
            "variant": variant.name,
            "task": decision.task,
            "decision_id": decision.decision_id,
        }
        unasked = self._unasked(variant)
        message = readdressed(self.request.raw, variant.model_name, upstream_id, unasked)
        if self.has_tokens:
            is_raw = len(self.request.contents) > 0
            if self.num_brought:
                message = without_input(message, EMITTED)
            message = with_int_input(message, EMITTED, bytes(self.emitted), is_raw=is_raw)
        change = response_change(public_name, self.client_id, parameters)
        self.attempt = Attempt(
            variant=variant,
            decision=decision,
            begun=variant.health.begin(),
            upstream_id=upstream_id,
            reader=AnswerReader(
                upstream_id.encode(),
                change,
                unasked,
                self.emitted,
                ",".join(left.key for left in self.left),
            ),
            parameters=parameters,
            change=change,
            message=message,
        )
        return self.attempt

    def _unasked(self, variant: Hosted) -> frozenset[str]:
        """The outputs to ask for beside those that the client names; it names none to get all."""
        asked = {output.name for output in self.request.message.outputs}
        if not asked:
            return frozenset()
        wanted = LEARNED_OUTPUTS | ({IDS} if self.is_streaming and variant.can_continue else set())
        return frozenset(wanted & variant.outputs - asked)


def outcome(flight: Flight, attempt: Attempt, broken: str) -> Outcome:
    """What the last response with outputs says of a request; zeros where it says nothing.

    The times of a request that had to change its variant say nothing of the one that ended it.
    """
    response = parse_stream_response(attempt.reader.last).infer_response
    numbers = int_outputs(response, INT_OUTPUTS)
    is_timed = flight.first_s is not None and not flight.left

    def first(name: str) -> int:
        return _first(numbers.get(name, ()))

    return Outcome(
        draft_length=attempt.decision.draft_length,
        num_steps=first("num_steps"),
        num_draft_tokens=first("num_draft_tokens"),
        num_accepted_draft_tokens=first("num_accepted_draft_tokens"),
        accepted_per_position=numbers.get("accepted_per_position", ()),
        num_output_tokens=first("num_output_tokens"),
        ttft_s=flight.first_s - flight.started_s if is_timed and flight.first_s else None,
        duration_s=time.monotonic() - flight.started_s,
        finish_reason=broken or text_output(response, "finish_reason") or "stop",
    )


def _first(values: Iterable[int]) -> int:
    return next(iter(values), 0)
