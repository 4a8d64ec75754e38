"""A request checked, decided and addressed to its variant; learned from when it is over."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from trt_mtp.controller.acceptance import DriftAlarm
from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.gateway.backend import Hosted
from trt_mtp.controller.gateway.flight import Flight, outcome
from trt_mtp.controller.gateway.guard import Caller
from trt_mtp.controller.gateway.health import CallEnd
from trt_mtp.controller.gateway.kserve import InferRequest
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.pool import Pool
from trt_mtp.controller.gateway.scoreboard import Line, Scoreboard
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.policy import NoVariantError
from trt_mtp.controller.request import (
    RequestFeatures,
    check_request,
    is_streaming,
    read_features,
    read_hints,
)
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import TrtMtpError

log = logging.getLogger(__name__)


class RoutingPolicy(Protocol):
    """What chooses variants, and learns."""

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request; raises TrtMtpError when none can take it."""

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm | None:
        """Learn from a finished request; the drift alarm that it raised, if any."""


@dataclass(slots=True)
class TaskCounters:
    """What became of one task's requests."""

    num_requests: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_failed_over: int = 0  # answers that went on elsewhere, once for each time
    num_output_tokens: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    chosen: dict[str, int] = field(default_factory=dict)  # requests by draft length


class Dispatcher:
    """Decides where requests go and keeps count; knows nothing of connections."""

    def __init__(self, pool: Pool, policy: RoutingPolicy, scoreboard: Scoreboard) -> None:
        self.pool = pool
        self._scoreboard = scoreboard
        self.counters: dict[str, TaskCounters] = {}
        self.num_refused = 0
        self.on_freed: Callable[[], None] = _nothing  # called when a variant has room again
        self._policy = policy
        self.metrics = GatewayMetrics()

    def open(self, request: InferRequest, caller: Caller) -> Flight:
        """A request to the public model, checked; `finish` follows, whatever happens.

        Raises InputError for one that is wrong, and as `Caller.admit` does.
        """
        try:
            lengths = {v.draft_length for v in self.pool.variants.values()}
            hints = read_hints(request, TASKS, lengths)
            check_request(request)
            features, tenant = caller.admit(read_features(request, hints))
        except TrtMtpError:
            self.refused()
            raise
        return Flight(request, features, is_streaming(request), tenant=tenant)

    def place(self, flight: Flight) -> bool:
        """Decide and begin; false when every variant that could take the request is full.

        Raises TrtMtpError when none can take it.
        """
        variants = self.pool.variants
        for key, variant in variants.items():
            variant.num_elsewhere = self._running(key).others
        states = self.pool.states(variants)
        features = flight.features
        usable = [state for key, state in states.items() if _may_take(variants[key], state, flight)]
        if flight.left:
            usable = _elsewhere(flight, variants, usable)
        hint = features.hint_draft_length
        hinted = [state for state in usable if hint is None or state.draft_length == hint]
        if flight.left and usable and not hinted:  # the answer is the same at any draft length
            hinted, features = usable, replace(features, hint_draft_length=None)
        is_full = any(state.is_full for state in hinted)
        if is_full and all(state.is_full for state in hinted):
            return False
        before_s = time.perf_counter()
        try:
            # where none is usable, the policy says why
            decision = self._policy.choose(
                features, hinted or list(states.values()), now_s=time.time()
            )
        except NoVariantError:
            if is_full:  # what has room is not for this request
                return False
            raise
        decision_s = time.perf_counter() - before_s
        attempt = flight.attempt_on(variants[decision.variant], decision, self.pool.public_name)
        self._count_running(attempt.variant, +1)
        self._count_begun(flight, decision)
        if flight.left:
            self.metrics.failed_over(decision.task, flight.left[-1].name)
        else:
            self.metrics.admitted(decision, attempt.variant.name, decision_s)
        return True

    def refused(self) -> None:
        """Count a request that was never placed."""
        self.num_refused += 1
        self.metrics.refused()

    def fail(self, flight: Flight, how: CallEnd) -> None:
        """The flight's variant failed it; place it again, or finish it."""
        attempt = flight.attempt
        assert attempt is not None
        self._release(flight, how)
        if how is CallEnd.BLAMED:
            flight.blamed.append(attempt)
        # not to learn from, but whoever logs or judges variants wants to know
        self._update(attempt.decision, outcome(flight, attempt, "error"))
        flight.left.append(attempt.variant)
        flight.left_s = time.monotonic()

    def answered(self, flight: Flight) -> None:
        """The flight's variant begins its answer: those that had an error for it were to blame.

        An error that every variant gives says nothing of them; a client could eject all of them
        with a request that breaks something.
        """
        for attempt in flight.blamed:
            attempt.variant.health.end(attempt.begun, CallEnd.FAILED, time.monotonic())
        flight.blamed.clear()

    def finish(self, flight: Flight, broken: str = "") -> None:
        """Count and learn from a request that is over; `broken` is "cancelled" or "error".

        Every flight that was placed comes here; what was never placed doesn't count.
        """
        attempt = flight.attempt
        if attempt is None or flight.is_finished:
            flight.leave(0)
            return
        flight.is_finished = True
        self._release(flight, CallEnd.ABANDONED if broken else CallEnd.ANSWERED)
        result = outcome(flight, attempt, broken)
        flight.leave(max(result.num_output_tokens, len(flight.emitted) // 4))
        self._count_finished(attempt.decision, result)
        self.metrics.finished(
            attempt.decision.task, attempt.variant.name, result, flight.is_streaming
        )
        self._update(attempt.decision, result)

    def _update(self, decision: Decision, result: Outcome) -> None:
        try:
            alarm = self._policy.update(decision, result)
        except Exception:  # what is learned may not cost an answer
            log.exception("the policy could not learn from %s", decision.decision_id)
            return
        if alarm is not None:
            self.metrics.drifted(alarm.key.task)
            log.warning(
                "acceptance of %s went %s within %d answers: most of what was learned of it is "
                "forgotten",
                alarm.key, alarm.direction, alarm.num_observations,
            )  # fmt: skip

    def is_ready(self) -> bool:
        """True while a variant can take requests."""
        return self.pool.is_ready

    def render_metrics(self) -> bytes:
        """What was counted and timed, in Prometheus' text format."""
        ready: dict[str, bool] = {}
        for variant in self.pool.variants.values():  # one for each server
            ready[variant.name] = ready.get(variant.name, False) or variant.is_ready
        return self.metrics.render(ready)

    def statistics(self) -> dict[str, Any]:
        """Counters by task and by variant, as a JSON object."""
        return {
            "schema_version": 1,
            "num_refused": self.num_refused,
            "tasks": {task: asdict(counters) for task, counters in sorted(self.counters.items())},
            "variants": {
                key: {
                    "draft_length": variant.draft_length,
                    "is_ready": variant.is_ready,
                    "is_ejected": variant.health.is_ejected,
                    "num_running": variant.num_running,
                }
                for key, variant in self.pool.variants.items()
            },
        }

    def _release(self, flight: Flight, how: CallEnd) -> None:
        attempt = flight.attempt
        assert attempt is not None
        if attempt.is_running:
            attempt.is_running = False
            self._count_running(attempt.variant, -1)
            attempt.variant.health.end(attempt.begun, how, time.monotonic())
            self.on_freed()

    def _count_running(self, variant: Hosted, change: int) -> None:
        variant.num_running += change
        self.metrics.in_flight(variant.name, change)
        self._running(variant.key).add(change)

    def _running(self, key: str) -> Line:
        """Requests in flight on variant `key` through each worker."""
        return self._scoreboard.line("running", key)

    def _count_begun(self, flight: Flight, decision: Decision) -> None:
        counters = self.counters.setdefault(decision.task, TaskCounters())
        counters.num_requests += not flight.left
        counters.num_failed_over += bool(flight.left)
        length = str(decision.draft_length)
        counters.chosen[length] = counters.chosen.get(length, 0) + 1

    def _count_finished(self, decision: Decision, result: Outcome) -> None:
        counters = self.counters[decision.task]
        counters.num_failed += result.finish_reason == "error"
        counters.num_cancelled += result.finish_reason == "cancelled"
        counters.num_finished += result.finish_reason not in ("error", "cancelled")
        counters.num_output_tokens += result.num_output_tokens
        counters.num_steps += result.num_steps
        counters.num_draft_tokens += result.num_draft_tokens
        counters.num_accepted_draft_tokens += result.num_accepted_draft_tokens


def _nothing() -> None:
    """For whoever doesn't care."""


def _may_take(variant: Hosted, state: VariantState, flight: Flight) -> bool:
    return state.is_healthy and (variant.can_continue or not flight.emitted)


def _elsewhere(
    flight: Flight, variants: Mapping[str, Hosted], usable: list[VariantState]
) -> list[VariantState]:
    """Of `usable`, variants that haven't failed this request, or that are known to be ready since.

    Raises TrtMtpError where there is none.
    """
    found = [state for state in usable if variants[state.name] not in flight.left] or [
        state for state in usable if variants[state.name].health.ready_s > flight.left_s
    ]
    if not found:
        raise TrtMtpError("no other variant can take the request")
    return found
