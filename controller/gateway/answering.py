"""One request answered to its end, by another variant when the one that began it fails."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from trt_mtp.controller.gateway.admission import Admission
from trt_mtp.controller.gateway.dispatch import Dispatcher
from trt_mtp.controller.gateway.failure import AnswerError, WaitedTooLongError
from trt_mtp.controller.gateway.flight import Attempt, Flight
from trt_mtp.controller.gateway.health import CallEnd
from trt_mtp.controller.gateway.kserve import final_response
from trt_mtp.controller.gateway.retry_budget import RetryBudget
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.controller.gateway.stall import StallLimits, StallWatch, note_first
from trt_mtp.controller.gateway.upstream import Metadata, UpstreamLost
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.contract import CANCELLED, INTERNAL_ERROR

log = logging.getLogger(__name__)

MAX_FRUITLESS = 3  # attempts at one request in a row that gave nothing: it may be the request
RETRY_S = 0.1
READY_WAIT_S = 3.0  # for any variant to be ready when a request comes

# What Triton says in a variant's place when it has none to hand the request to: its core, and its
# python backend when the process of a model died, which is all that ever tells of that; and what an
# engine says that is being closed.
DEAD = re.compile(r"Stub process")
UNAVAILABLE = re.compile(
    rf"{DEAD.pattern}|Request for unknown model|Failed to process the request|{CANCELLED}"
)
REQUEST_ID = "[request id: {}] "  # that Triton puts before what it refuses a request with


def nothing(flight: Flight) -> None:
    """For whoever doesn't care."""


Send = Callable[[bytes], Awaitable[None]]


class AttemptFailed(Exception):
    """A variant failed, which says nothing of the request; `error` is what to say if it ends it."""

    def __init__(self, error: AnswerError, how: CallEnd = CallEnd.FAILED) -> None:
        super().__init__(str(error))
        self.error = error
        self.how = how


@dataclass(slots=True)
class Answering:
    """What is needed to answer requests."""

    dispatcher: Dispatcher
    admission: Admission
    watch: StallWatch
    budget: RetryBudget
    patience_s: float  # for another variant to become usable when one fails
    on_answered: Callable[[Flight], None] = nothing  # of an answer that is complete

    @classmethod
    def of(
        cls,
        dispatcher: Dispatcher,
        scoreboard: Scoreboard,
        max_waiting: int,
        limits: StallLimits,
        patience_s: float,
    ) -> "Answering":
        """Everything in its initial state."""
        admission = Admission(dispatcher, max_waiting, scoreboard.line("waiting"))
        budget = RetryBudget(scoreboard.line("retries").time)
        return cls(dispatcher, admission, StallWatch(limits), budget, patience_s)

    async def answer(
        self, flight: Flight, send: Send, metadata: Metadata, deadline_s: float | None
    ) -> None:
        """Carry the answer to the client through `send`, from as many variants as it takes.

        Raises AnswerError when it can't be completed, and what `Admission.place` raises; both end
        the request. The flight is counted and learned from, whatever happens.
        """
        broken = "error"
        self.budget.request()
        try:
            await self._until_one_is_ready()
            await self.admission.place(flight, deadline_s)
            await self._to_the_end(flight, send, metadata, deadline_s)
            broken = ""
            self.on_answered(flight)
        except asyncio.CancelledError:
            broken = "cancelled"
            raise
        except TrtMtpError:
            if flight.attempt is None:
                self.dispatcher.refused()
            raise
        finally:
            self.dispatcher.finish(flight, broken)

    async def _until_one_is_ready(self) -> None:
        """Wait for a little while no variant is, as after a lost connection."""
        until_s = time.monotonic() + READY_WAIT_S
        while not self.dispatcher.pool.is_ready and time.monotonic() < until_s:
            await asyncio.sleep(RETRY_S)

    async def _to_the_end(
        self, flight: Flight, send: Send, metadata: Metadata, deadline_s: float | None
    ) -> None:
        num_fruitless = 0
        while True:
            attempt = flight.attempt
            assert attempt is not None
            try:
                await self._attempt(flight, attempt, send, metadata)
                return
            except AttemptFailed as failed:
                log.warning("%s failed: %s", attempt.variant.key, failed)
                self.dispatcher.fail(flight, failed.how)
                if attempt.reader.is_complete:
                    self.dispatcher.finish(flight)
                    await _send_final(flight, attempt, send)
                    return
                num_fruitless = 0 if attempt.reader.last else num_fruitless + 1
                is_hopeless = num_fruitless == MAX_FRUITLESS or not flight.can_continue
                if is_hopeless or not self.budget.take():
                    raise failed.error from None
                await self._place_elsewhere(flight, failed.error, deadline_s)

    async def _attempt(
        self, flight: Flight, attempt: Attempt, send: Send, metadata: Metadata
    ) -> None:
        """Read one variant's answer; raises AttemptFailed, or AnswerError for a bad request."""
        backend, reader = attempt.variant.backend, attempt.reader
        is_empty_final_wanted = flight.is_empty_final_wanted
        upstream = backend.lease(metadata)
        self.watch.add(upstream, flight)
        try:
            started_s = time.monotonic()
            upstream.begin(attempt.message)
            attempt.message = b""
            while not reader.is_over:
                is_first = not reader.last
                message = reader.read(await upstream.read(), is_empty_final_wanted)
                if reader.error:
                    continue  # Triton 2.51 aborts when a stream is cancelled before its error ends
                if is_first:
                    attempt.variant.health.answer(attempt.begun)
                    self.dispatcher.answered(flight)
                    if flight.is_streaming:
                        note_first(flight, time.monotonic() - started_s)
                if message is not None and flight.first_s is None:
                    flight.first_s = time.monotonic()
                if reader.is_over:
                    self.dispatcher.finish(flight)  # whoever has the answer finds it counted
                if message is not None:
                    await send(message)
        except UpstreamLost as lost:
            if lost.is_unavailable:
                backend.suspect()
            if not reader.error:
                how = CallEnd.HUNG if lost.is_hung else CallEnd.FAILED
                raise AttemptFailed(_lost(attempt, str(lost)), how) from None
        except InputError as error:  # not a message
            raise AttemptFailed(_lost(attempt, str(error))) from None
        finally:
            self.watch.remove(upstream)
            if reader.is_over:
                backend.give_back(upstream)
            else:
                upstream.close()
        if reader.error:
            # the id is the client's own words
            text = reader.error.removeprefix(REQUEST_ID.format(attempt.upstream_id))
            if DEAD.match(text):
                self.watch.give_up_on(attempt.variant)
            raise _classified(flight, attempt, text)

    async def _place_elsewhere(
        self, flight: Flight, why: AnswerError, deadline_s: float | None
    ) -> None:
        """Find another variant, soon; raises `why` where there is none."""
        until_s = time.monotonic() + self.patience_s
        while True:
            try:
                await self.admission.place(flight, deadline_s)
                return
            except WaitedTooLongError:
                raise
            except TrtMtpError:
                if time.monotonic() > until_s:
                    raise why from None
            await asyncio.sleep(RETRY_S)


async def _send_final(flight: Flight, attempt: Attempt, send: Send) -> None:
    """End an answer whose tokens all came, in its variant's place."""
    if flight.is_empty_final_wanted:
        await send(final_response(attempt.change))


def _classified(flight: Flight, attempt: Attempt, error: str) -> AttemptFailed | AnswerError:
    """The variant's failure, by an error's words or because one began the answer; or its own."""
    if UNAVAILABLE.match(error):
        code = grpc.StatusCode.UNAVAILABLE
    elif attempt.reader.last or flight.has_begun or error.startswith(INTERNAL_ERROR):
        code = grpc.StatusCode.INTERNAL
    else:
        return AnswerError(grpc.StatusCode.INVALID_ARGUMENT, error)
    how = CallEnd.FAILED if attempt.reader.last or DEAD.match(error) else CallEnd.BLAMED
    return AttemptFailed(AnswerError(code, error), how)


def _lost(attempt: Attempt, reason: str) -> AnswerError:
    return AnswerError(
        grpc.StatusCode.UNAVAILABLE,
        f"variant {attempt.variant.name} was lost before the answer was complete "
        f"({reason}); send the request again",
    )
