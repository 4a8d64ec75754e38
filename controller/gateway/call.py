"""A client's request to the public model, from its arrival to the end of its answer."""

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.failure import ForbiddenError, VariantFailedError, let_go
from trt_mtp.controller.gateway.response_rewriter import IDS, MAX_IDS_BYTES
from trt_mtp.controller.gateway.servers.health import CallEnd
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.gateway.servers.upstream import Metadata
from trt_mtp.controller.gateway.trace_context import trace_context
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import RequestFeatures, is_streaming
from trt_mtp.controller.request_limits import check_for_triton
from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.contract import COUNTERS, EMITTED, IN_FLIGHT, NUM_INPUT, RETURN_READ, SEED
from trt_mtp.serve.kserve import (
    EMPTY_FINAL,
    InferRequest,
    int_input,
    parameter_value,
    readdressed,
    with_input,
    without_input,
)

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.lease import Lease

INT_OUTPUTS = COUNTERS | {"num_output_tokens"}
LEARNED_OUTPUTS = INT_OUTPUTS | {"finish_reason", "seed", IN_FLIGHT, NUM_INPUT}
MAX_ID_CHARS = 128  # of a client's request id that goes on to Triton
BYTES_PER_TOKEN = 4  # INT32
SEED_BYTES = 8  # UINT64
BROKEN = frozenset({"error", "cancelled"})  # finish reasons of answers that broke off
MAX_HUNG = 2  # variants that a request may leave silent in a row, it may be the cause
MAX_FRUITLESS = 3  # attempts in a row that gave nothing: the request may be the cause
# after the first of them, before a variant that failed the request has it again; then twice as long
SAME_AGAIN_S = 1.0
MAX_UNREACHABLE = 20  # the same where the server could not be reached: the request is not
# what a failure that may be the request's own was, if another variant answers
BLAME = {CallEnd.BLAMED: CallEnd.FAILED, CallEnd.SILENT: CallEnd.HUNG}


@dataclass(slots=True, eq=False)
class InferenceCall:
    """A request, who has it now, how far its answer is, and which variants failed it.

    It doesn't refer to its lease, which refers to it: without a cycle, the end of an answer frees
    both at once and leaves nothing to the garbage collector.
    """

    request: InferRequest
    features: RequestFeatures
    caller: Caller
    metadata: Metadata = ()  # that goes on to Triton
    deadline_at: float | None = None  # monotonic time until which it may wait for a variant
    wants_reasons: bool = False  # of the decision, in the responses
    optional_outputs: frozenset[str] = frozenset()  # for the client, of variants that have them
    started_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None  # monotonic time of the first message to the client
    replica: Replica | None = None  # that has the request, or had it last
    decision: Decision | None = None  # that it went there
    parameters: dict[str, str] = field(default_factory=dict)  # of every response: how it came
    outcome: Outcome | None = None  # of the latest lease, once that is closed
    num_input_tokens: int = 0  # of its prompt, as a variant told; 0 where none did
    failed_variants: list[Replica] = field(default_factory=list)
    last_failure: VariantFailedError | None = None
    last_failure_at: float = 0.0  # monotonic
    # says who was to blame, if another variant answers
    suspected: list[Callable[[], None]] = field(default_factory=list)
    is_streaming: bool = field(init=False)
    is_empty_final_wanted: bool = field(init=False)  # a final message that brings nothing
    seed: bytes = field(init=False)  # drawn for a request without one, so that all variants have it
    emitted: bytearray = field(init=False)  # INT32 ids of the tokens that the client has
    num_brought: int = field(init=False)  # bytes of them that it had before, and sent along
    _hung: set[Replica] = field(default_factory=set)  # since the last progress
    _num_fruitless: int = 0
    _num_unreachable: int = 0

    def __post_init__(self) -> None:
        self.is_streaming = is_streaming(self.request)
        parameters = self.request.message.parameters
        self.is_empty_final_wanted = (
            EMPTY_FINAL in parameters and parameters[EMPTY_FINAL].bool_param
        )
        self.seed = b"" if SEED in self.request.names else secrets.token_bytes(SEED_BYTES)
        self.emitted = bytearray(int_input(self.request, EMITTED))
        self.num_brought = len(self.emitted)

    @property
    def owner(self) -> object:
        """Whose request it is, to tell apart whom a variant failed."""
        return self.caller.owner

    @property
    def chat_format(self) -> ChatFormat:
        """How the answer is read, which says the checkpoint of the variant that has the request."""
        return ChatFormat() if self.replica is None else self.replica.chat_format

    @property
    def client_id(self) -> str:
        """The request's id as the client knows it."""
        return str(self.request.message.id)

    @property
    def priority(self) -> int | None:
        """Triton's `priority`, 1 for the highest; None where the request leaves it open."""
        parameters = self.request.message.parameters
        value = parameter_value(parameters["priority"]) if "priority" in parameters else None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def has_tokens(self) -> bool:
        """Are there tokens that variants sent?"""
        return len(self.emitted) > self.num_brought

    @property
    def has_begun(self) -> bool:
        """Did any variant begin the answer?"""
        return self.has_tokens or self.first_at is not None

    @property
    def can_continue(self) -> bool:
        """May another variant continue where the answer is?

        Not where its tokens aren't known, nor after several attempts that gave nothing, the less
        if they left variants silent: one that hung alone may have failed the request, a second one
        says that the request hangs variants. Nor where there are more tokens than any could take.
        """
        is_hopeless = (
            self._num_fruitless >= MAX_FRUITLESS or self._num_unreachable >= MAX_UNREACHABLE
        )
        is_possible = self.has_tokens or self.first_at is None
        is_hopeless |= len(self.emitted) > MAX_IDS_BYTES
        return is_possible and not (is_hopeless or self.hangs_variants)

    @property
    def hangs_variants(self) -> bool:
        """Did as many variants in a row fall silent with it as may?"""
        return len(self._hung) >= MAX_HUNG

    @property
    def again_from(self) -> float:
        """The monotonic time from which a variant that failed it may have it again, if it is ready.

        One that could not be reached says so itself when it is back. One that answers with errors
        says all the while that it is ready: meanwhile another one may come back.
        """
        pause_s = SAME_AGAIN_S * 2 ** (self._num_fruitless - 1) if self._num_fruitless else 0.0
        return self.last_failure_at + pause_s

    def num_output_tokens(self) -> int:
        """Tokens of the answer so far, as far as they are known, without those it was given."""
        outcome, num_brought = self.outcome, self.num_brought // BYTES_PER_TOKEN
        known = max(
            outcome.num_output_tokens - num_brought if outcome else 0,
            len(self.emitted) // BYTES_PER_TOKEN - num_brought,
        )
        is_unknown = self.outcome is not None and self.outcome.finish_reason in BROKEN
        return known or (self._expected_tokens() if is_unknown else 0)

    def _expected_tokens(self) -> int:
        """What a variant has probably made of an answer that broke off before anything came."""
        assert self.decision is not None
        assert self.outcome is not None
        chosen, limit = self.decision.chosen, self.features.max_tokens
        if chosen.step_s <= 0:
            return 0
        steps = self.outcome.duration_s / chosen.step_s
        return min(int(steps * max(chosen.acceptance_length, 1.0)), limit)

    def quota(self) -> AbstractContextManager[None]:
        """Held while the request is answered; raises LimitError where its caller has none left."""
        return self.caller.quota(self.features, self._num_late_tokens)

    def _num_late_tokens(self) -> int:
        """What is charged in the end: the answer, and what its prompt had beyond the estimate."""
        beyond = max(self.num_input_tokens - self.features.prompt_tokens, 0)
        return self.num_output_tokens() + beyond

    def note_failure(self, lease: "Lease", failure: VariantFailedError) -> None:
        """A variant failed the request; what follows is another one's."""
        let_go(failure)  # it would hold the call, which holds it
        self.failed_variants.append(lease.replica)
        self.last_failure, self.last_failure_at = failure, time.monotonic()
        if failure.end in BLAME:
            self.suspected.append(lease.blame(BLAME[failure.end]))
        if lease.has_begun:
            self._hung.clear()
            self._num_fruitless = self._num_unreachable = 0
        elif failure.is_unreachable:
            self._num_unreachable += 1
        else:
            self._num_fruitless += 1
        if failure.end is CallEnd.SILENT:
            self._hung.add(lease.replica)

    def note_answer(self) -> None:
        """A variant begins the answer: those that had an error for it, or hung, were to blame.

        What every variant does with a request says nothing of them; a client could eject all of
        them with one that breaks something.
        """
        for blame in self.suspected:
            blame()
        self.suspected.clear()

    def unasked(self, replica: Replica) -> frozenset[str]:
        """The outputs to ask for beside those that the client names; it names none to get all."""
        asked = {output.name for output in self.request.message.outputs}
        if not asked:
            return frozenset()
        wanted = LEARNED_OUTPUTS | ({IDS} if self.is_streaming and replica.can_continue else set())
        return frozenset((wanted | self.optional_outputs) & replica.outputs - asked)

    def hidden(self, replica: Replica) -> frozenset[str]:
        """The outputs that are not for the client, who got some of them by naming none."""
        is_named = any(output.name == IN_FLIGHT for output in self.request.message.outputs)
        hidden = self.unasked(replica) - self.optional_outputs
        return hidden | (frozenset() if is_named else {IN_FLIGHT})

    def is_tried_by(self, replica: Replica) -> bool:
        """Whether `replica` tries a grammar of it first, and says when it has accepted it."""
        return self.features.is_guided and RETURN_READ in replica.inputs

    def message_for(self, replica: Replica, upstream_id: str) -> bytes:
        """The request as `replica` gets it: with a seed, after the tokens that the client has."""
        unasked = self.unasked(replica)
        message = readdressed(self.request.raw, replica.model_name, upstream_id, unasked)
        is_raw = len(self.request.contents) > 0
        if self.has_tokens:
            if self.num_brought:
                message = without_input(message, EMITTED)
            message = with_input(message, EMITTED, "INT32", bytes(self.emitted), is_raw=is_raw)
        if self.seed:
            message = with_input(message, SEED, "UINT64", self.seed, is_raw=is_raw)
        if self.is_tried_by(replica):
            message = with_input(message, RETURN_READ, "BOOL", b"\1", is_raw=is_raw)
        return message


def check_may_pass(caller: Caller, pool: Pool, message: Any) -> None:
    """Raise ForbiddenError for a request to a variant by its name that would get around limits.

    Raises InputError for one that Triton is not to get, whichever model it is for.
    """
    check_for_triton(message)
    model = message.model_name
    if not caller.is_limited or model not in pool.index.model_names:
        return
    raise ForbiddenError(
        f"{model} is a variant of {pool.public_name}: send the request to that model, with the "
        f"parameter draft_length if it has to be this one"
    )


def forwarded_metadata(context: Any) -> Metadata:
    """What of a client's metadata goes on to Triton."""
    return trace_context(context.invocation_metadata() or ())


def deadline_at(request: InferRequest, remaining_s: float | None) -> float | None:
    """The monotonic time when a request's is over; None for never.

    That is its call's deadline, or Triton's `timeout` (µs) where that is earlier.
    """
    parameters = request.message.parameters
    value = parameter_value(parameters["timeout"]) if "timeout" in parameters else None
    limits = [] if remaining_s is None else [remaining_s]
    if isinstance(value, int) and value > 0:
        limits.append(value / 1e6)
    return time.monotonic() + min(limits) if limits else None
