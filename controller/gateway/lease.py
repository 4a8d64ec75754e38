"""A place at a variant for one call: held from the decision until the variant is done with it.

Iterating over a lease gives the messages for the client, all but the last one, which is kept until
the lease is closed and the request counted. What still comes when it is closed is thrown away.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.gateway.call import BROKEN, INT_OUTPUTS, MAX_ID_CHARS, InferenceCall
from trt_mtp.controller.gateway.client_pauses import ClientPauses
from trt_mtp.controller.gateway.failure import VariantFailedError, WrongRequestError
from trt_mtp.controller.gateway.hang_detector import HangDetector
from trt_mtp.controller.gateway.response_rewriter import ResponseRewriter
from trt_mtp.controller.gateway.servers.health import CallEnd
from trt_mtp.controller.gateway.servers.replica import LoadReading, Replica
from trt_mtp.controller.gateway.servers.upstream import Upstream, UpstreamLost
from trt_mtp.controller.gateway.servers.winding_down import Rest
from trt_mtp.controller.outcome import REFUSED, Outcome
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import CANCELLED, INTERNAL_ERROR, NUM_INPUT, REASONS, STUCK
from trt_mtp.serve.kserve import (
    final_response,
    int_outputs,
    parse_stream_response,
    response_change,
    text_output,
    uint64_output,
)
from trt_mtp.serve.parameter_names import explained

# What Triton says in a variant's place if it has none to hand the request to: its core, and its
# python backend when the process of a model died, which is all that ever tells of that; and what an
# engine says that is being closed.
DEAD = re.compile(r"Stub process")
UNAVAILABLE = re.compile(
    rf"{DEAD.pattern}|Request for unknown model|Failed to process the request|{CANCELLED}"
)
REQUEST_ID = "[request id: {}] "  # that Triton puts before what it refuses a request with

WindingDown = asyncio.Task[Rest]


def _nothing(lease: "Lease") -> None:
    """Nobody counts."""


class Lease:
    """One call on one variant. `with` begins and ends it; `outcome` is there from then on."""

    __slots__ = (
        "_begun",
        "_begun_load",
        "_change",
        "_detector",
        "_late_failure",
        "_on_accepted",
        "_on_close",
        "_pauses",
        "_public_name",
        "_rewriter",
        "_upstream",
        "_upstream_id",
        "begun_at",
        "call",
        "decision",
        "last_message",
        "outcome",
        "replica",
    )

    def __init__(
        self,
        call: InferenceCall,
        replica: Replica,
        decision: Decision,
        public_name: str,
        detector: HangDetector,
        on_close: Callable[["Lease", WindingDown | None], None],
        on_accepted: Callable[["Lease"], None] = _nothing,
    ) -> None:
        """`on_close` is told of the end, and of the task in which the rest is thrown away.

        `on_accepted` is told if the call is one whose grammar the variant tries first, and that is
        over.
        """
        self.call, self.replica, self.decision = call, replica, decision
        call.replica, call.decision = replica, decision
        call.parameters = {
            "variant": replica.name,
            "task": decision.task,
            "decision_id": decision.decision_id,
        }
        if call.wants_reasons:
            call.parameters[REASONS] = "; ".join(decision.reasons)
        self.last_message: bytes | None = None
        self.outcome: Outcome | None = None
        # who knows it can cancel the request, so that it is not to be guessed
        secret_id = f"{decision.decision_id}/{secrets.token_hex(8)}"
        self._upstream_id = f"{call.client_id[:MAX_ID_CHARS]}/{secret_id}".lstrip("/")
        self._public_name = public_name
        self._change = response_change(public_name, call.client_id, call.parameters)
        self._rewriter = ResponseRewriter(
            self._upstream_id.encode(),
            self._change,
            call.hidden(replica),
            call.emitted,
            ",".join(failed.key for failed in call.failed_variants),
            call.is_tried_by(replica),
        )
        self._detector, self._on_close, self._on_accepted = detector, on_close, on_accepted
        self._upstream: Upstream | None = None
        self._late_failure: VariantFailedError | None = None
        self.begun_at = 0.0  # monotonic time when the request was sent
        self._begun_load: LoadReading | None = None
        self._pauses = ClientPauses()
        self._begun = replica.health.begin()

    @property
    def has_begun(self) -> bool:
        """Did the variant send anything of the answer?"""
        return bool(self._rewriter.last)

    @property
    def is_on_trial(self) -> bool:
        """Is its grammar being tried? It has no place in the variant's engine yet."""
        return self._rewriter.is_on_trial

    @property
    def is_held_up(self) -> bool:
        """Did its client have it wait for so long that its time is not its variant's?"""
        return self._pauses.are_long(time.monotonic() - self.begun_at)

    @property
    def num_input_tokens(self) -> int | None:
        """The prompt's tokens as the variant told them; None for one that could and has not."""
        told = self._rewriter.num_input_tokens
        return told or (None if NUM_INPUT in self.replica.outputs else 0)

    @property
    def is_answered(self) -> bool:
        """True once it was closed with the whole answer."""
        return self.outcome is not None and self.outcome.finish_reason not in (*BROKEN, REFUSED)

    @property
    def message(self) -> bytes:
        """The request as its variant gets it."""
        return self.call.message_for(self.replica, self._upstream_id)

    @property
    def upstream(self) -> Upstream:
        """The stream that the answer comes on."""
        assert self._upstream is not None
        return self._upstream

    def __enter__(self) -> Self:
        """Send the request."""
        self._upstream = self.replica.backend.take_stream(self.call.metadata)
        self._detector.add(self)
        self.begun_at = time.monotonic()
        self._upstream.begin(self.message)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Give the place back; what ended the answer too early is `error`."""
        self._detector.remove(self)
        winding_down = self._return_stream()
        end, now_s = self._end(error), time.monotonic()
        self.replica.health.end(self._begun, end, now_s, self.call.owner)
        self.call.num_input_tokens = self._rewriter.num_input_tokens or self.call.num_input_tokens
        outcome = _outcome(self, self._rewriter.last, _broken(error))
        if self._begun_load is not None:
            on_variant, on_device = self.replica.load_since(self._begun_load, now_s)
            outcome = replace(outcome, on_variant=on_variant, on_device=on_device)
        self.outcome = self.call.outcome = outcome
        self._on_close(self, winding_down)

    def blame(self, end: CallEnd) -> Callable[[], None]:
        """What says that the variant's silence, or its error, was its own fault.

        It doesn't hold the lease: the call has it, and a lease has its call.
        """
        health, begun = self.replica.health, self._begun
        return lambda: health.end(begun, end, time.monotonic())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next message for the client.

        Raises VariantFailedError, WrongRequestError for a request that the variant refuses, or
        ClientStalledError for a client that has it wait for too long.
        """
        rewriter, upstream = self._rewriter, self.upstream
        self._pauses.end(time.monotonic() - self.begun_at)
        while not rewriter.is_over:
            try:
                message = self._take(await upstream.read())
            except (UpstreamLost, InputError) as error:
                self._end_early(self.failed(error))
            if rewriter.is_over:
                self.last_message = message
            elif message is not None:
                self._pauses.begin()
                return message
        if rewriter.error:
            self._end_early(self._refusal())
        raise StopAsyncIteration

    def read_whole(self, messages: Iterable[bytes]) -> Sequence[bytes]:
        """The messages for the client of an answer that Envoy brings, all of it at once.

        Raises as reading it one by one does.
        """
        try:
            taken = [self._take(raw) for raw in messages]
        except InputError as error:
            raise self.failed(error) from None
        if self._rewriter.error:
            raise self._refusal()
        if not self._rewriter.is_complete:
            raise self._failure("its answer was cut off")
        return [message for message in taken if message is not None]

    def _take(self, raw: bytes) -> bytes | None:
        """What the client gets for a message of the variant's; raises InputError for none."""
        rewriter, call = self._rewriter, self.call
        is_first, was_on_trial = not rewriter.last, rewriter.is_on_trial
        message = rewriter.read(raw, call.is_empty_final_wanted)
        if was_on_trial and not rewriter.is_on_trial:
            self._on_accepted(self)
        if is_first and not rewriter.error and (rewriter.last or rewriter.is_over):
            self._note_first()
        self._note_load()
        if message is not None and call.first_at is None:
            call.first_at = time.monotonic()
        return message

    def _note_load(self) -> None:
        """The variant is alive, and says how busy it is; of the last message, its own is over."""
        rewriter, now_s = self._rewriter, time.monotonic()
        self.replica.heard(now_s)
        if rewriter.num_in_flight is not None:
            is_over = rewriter.is_complete or rewriter.is_over
            self.replica.note_load(rewriter.num_in_flight, now_s, num_left=int(is_over))

    def _note_first(self) -> None:
        """The variant has begun the answer."""
        self._begun_load = self.replica.load_reading(time.monotonic())
        self.replica.health.answer(self._begun)
        self.call.note_answer()
        self._detector.note_first(self, time.monotonic() - self.begun_at)

    def _end_early(self, error: VariantFailedError | WrongRequestError) -> NoReturn:
        """Raise `error`, or end the answer as usual if all of its tokens are there."""
        if not self._rewriter.is_complete or not isinstance(error, VariantFailedError):
            try:
                raise error
            finally:
                del error  # it would hold this frame, which would hold it, and the request
        self._late_failure = error
        if self.call.is_empty_final_wanted:
            self.last_message = final_response(self._change)
        raise StopAsyncIteration

    def _return_stream(self) -> WindingDown | None:
        if self._upstream is None:
            return None
        backend = self.replica.backend
        if self._rewriter.is_over:
            backend.give_back(self._upstream)
        elif self._upstream.is_open:
            return backend.abandon(self._upstream, self.replica, self._upstream_id)
        return None

    def failed(self, lost: UpstreamLost | InputError) -> VariantFailedError | WrongRequestError:
        """What the end of a stream says of the variant: nothing if it never had the request."""
        if isinstance(lost, InputError):  # what came is not a message
            return self._failure(str(lost))
        if lost.is_unavailable:
            self.replica.backend.suspect()
        elif lost.is_hung:
            self.replica.backend.look_soon()
        if self._rewriter.error:
            return self._refusal()
        end = CallEnd.SILENT if lost.is_hung else CallEnd.FAILED
        return self._failure(
            str(lost),
            CallEnd.ABANDONED if lost.is_unsent else end,
            is_unreachable=lost.is_unavailable or lost.is_unsent,
        )

    def _refusal(self) -> VariantFailedError | WrongRequestError:
        """What the variant's error message stands for: its failure, or a wrong request.

        It is the variant's by its words, or if an answer had begun; but a grammar in which answers
        get stuck is the request's, or who sends such would use up everybody's retries.
        """
        # the id is the client's own words
        error = self._rewriter.error.removeprefix(REQUEST_ID.format(self._upstream_id))
        is_dead = DEAD.match(error) is not None
        if is_dead:
            self._detector.give_up_on(self.replica)
        is_lost = UNAVAILABLE.match(error) is not None
        is_begun = self.has_begun or self.call.has_begun
        is_stuck = error.startswith(f"{INTERNAL_ERROR}{STUCK}")
        if is_stuck or not (is_lost or is_begun or error.startswith(INTERNAL_ERROR)):
            # who asked for the public model may not know that there are others
            variant = rf"(?<!\w){re.escape(self.replica.model_name)}(?!\w)"
            own = error.removeprefix(INTERNAL_ERROR)
            told = re.sub(variant, lambda _: self._public_name, own)
            return WrongRequestError(explained(told))
        end = CallEnd.FAILED if is_dead else CallEnd.BLAMED
        return self._failure(error, end, is_lost=is_lost)

    def _failure(
        self,
        reason: str,
        end: CallEnd = CallEnd.FAILED,
        *,
        is_lost: bool = True,
        is_unreachable: bool = False,
    ) -> VariantFailedError:
        return VariantFailedError(
            reason, self.replica.name, end, is_lost=is_lost, is_unreachable=is_unreachable
        )

    def _end(self, error: BaseException | None) -> CallEnd:
        """What the end of the call says of the variant."""
        failure = self._late_failure or error
        if isinstance(failure, VariantFailedError):
            return failure.end
        return CallEnd.ANSWERED if failure is None else CallEnd.ABANDONED


def _broken(error: BaseException | None) -> str:
    """The finish reason of an answer that broke off; an empty string for one that didn't."""
    if error is None:
        return ""
    if isinstance(error, WrongRequestError):
        return REFUSED
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "error"


def _outcome(lease: Lease, last: bytes, broken: str) -> Outcome:
    """What the last response with outputs says of a request; zeros where it says nothing.

    The times of a request that had to change its variant say nothing of the one that ended it, nor
    do those of an answer that its client had wait.
    """
    call = lease.call
    response = parse_stream_response(last).infer_response
    numbers = int_outputs(response, INT_OUTPUTS)
    is_timed = call.first_at is not None and not call.failed_variants and not lease.is_held_up

    def first(name: str, otherwise: int = 0) -> int:
        return next(iter(numbers.get(name, ())), otherwise)

    return Outcome(
        draft_length=lease.decision.draft_length,
        num_steps=first("num_steps"),
        num_draft_tokens=first("num_draft_tokens"),
        num_accepted_draft_tokens=first("num_accepted_draft_tokens"),
        accepted_per_position=numbers.get("accepted_per_position", ()),
        cut_after=first("cut_after", -1),
        seed=uint64_output(response, "seed"),
        num_output_tokens=first("num_output_tokens"),
        ttft_s=call.first_at - call.started_at if is_timed and call.first_at else None,
        duration_s=time.monotonic() - call.started_at,
        finish_reason=broken or text_output(response, "finish_reason") or "stop",
    )
