"""A request checked, decided and addressed to its variant; learned from when it is over."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from trt_mtp.controller.backend import Backend, Hosted
from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.kserve import (
    EMPTY_FINAL,
    InferRequest,
    OutputFilter,
    int_outputs,
    parse_stream_response,
    readdressed,
    response_change,
    text_output,
)
from trt_mtp.controller.metrics import GatewayMetrics
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import (
    RequestFeatures,
    check_inputs,
    is_streaming,
    read_features,
    read_hints,
)
from trt_mtp.controller.tasks import TASKS
from trt_mtp.serve.contract import COUNTERS

log = logging.getLogger(__name__)

INT_OUTPUTS = COUNTERS | {"num_output_tokens"}
LEARNED_OUTPUTS = INT_OUTPUTS | {"finish_reason"}
MAX_ID_CHARS = 128  # a longer request id is replaced on its way to Triton


class RoutingPolicy(Protocol):
    """What chooses variants, and learns."""

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request; raises TrtMtpError when none can take it."""

    def update(self, decision: Decision, outcome: Outcome) -> None:
        """Learn from a finished request."""


@dataclass(slots=True, eq=False)
class Flight:
    """A request between its decision and its last response."""

    variant: Hosted
    decision: Decision
    client_id: str
    upstream_id: bytes
    change: bytes  # what every response of it is changed by
    parameters: dict[str, str]  # the same for one that the gateway writes
    is_empty_final_wanted: bool
    unasked: OutputFilter | None
    is_streaming: bool
    started_s: float
    first_s: float | None = None  # of the first response with outputs
    last: bytes = b""  # the latest response with outputs: the counters come with the last one
    is_failed: bool = False

    def saw(self, raw: bytes) -> None:
        """Note a response that has outputs."""
        if self.first_s is None:
            self.first_s = time.monotonic()
        self.last = raw


@dataclass(slots=True)
class TaskCounters:
    """What became of one task's requests."""

    num_requests: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    chosen: dict[str, int] = field(default_factory=dict)  # requests by draft length


class Dispatcher:
    """Decides where requests go and keeps count; knows nothing of connections."""

    def __init__(self, backend: Backend, policy: RoutingPolicy) -> None:
        self.backend = backend
        self.counters: dict[str, TaskCounters] = {}
        self.num_refused = 0
        self._policy = policy
        self._metrics = GatewayMetrics()

    def admit(self, request: InferRequest, taken_ids: Collection[bytes]) -> tuple[Flight, bytes]:
        """A decision for a request to the public model, and the request to send to its variant.

        Raises InputError for a request that is wrong, TrtMtpError when no variant can take it.
        """
        variants = self.backend.variants
        started_s = time.monotonic()
        hints = read_hints(request, TASKS, {v.draft_length for v in variants.values()})
        check_inputs(request)
        features = read_features(request, hints)
        states = [variant.state() for variant in variants.values()]
        before_s = time.perf_counter()
        decision = self._policy.choose(features, states, now_s=time.time())
        decision_s = time.perf_counter() - before_s
        flight = self._flight(request, decision, taken_ids, started_s)
        raw = readdressed(
            request.raw,
            flight.variant.model_name,
            flight.upstream_id.decode(),
            flight.unasked.names if flight.unasked else (),
        )
        self._count_admitted(flight)
        self._metrics.admitted(decision, flight.variant.name, decision_s)
        return flight, raw

    def refused(self) -> None:
        """Count a request that `admit` raised for."""
        self.num_refused += 1
        self._metrics.refused()

    def finish(self, flight: Flight, broken: str = "") -> None:
        """Count and learn from a request that is over; `broken` is "cancelled" or "error".

        Every flight that `admit` returned comes here once.
        """
        flight.variant.num_running -= 1
        outcome = _outcome(flight, "error" if flight.is_failed else broken)
        self._count_finished(flight, outcome)
        self._metrics.finished(
            flight.decision.task, flight.variant.name, outcome, flight.is_streaming
        )
        try:
            self._policy.update(flight.decision, outcome)
        except Exception:  # what is learned may not cost an answer
            log.exception("the policy could not learn from %s", flight.decision.decision_id)

    def is_ready(self) -> bool:
        """True while a variant can take requests."""
        return any(variant.is_ready for variant in self.backend.variants.values())

    def render_metrics(self) -> bytes:
        """What was counted and timed, in Prometheus' text format."""
        return self._metrics.render(
            {variant.name: variant.is_ready for variant in self.backend.variants.values()}
        )

    def statistics(self) -> dict[str, Any]:
        """Counters by task and by variant, as a JSON object."""
        return {
            "schema_version": 1,
            "num_refused": self.num_refused,
            "tasks": {task: asdict(counters) for task, counters in sorted(self.counters.items())},
            "variants": {
                variant.name: {
                    "draft_length": variant.draft_length,
                    "is_ready": variant.is_ready,
                    "num_running": variant.num_running,
                }
                for variant in self.backend.variants.values()
            },
        }

    def _flight(
        self,
        request: InferRequest,
        decision: Decision,
        taken_ids: Collection[bytes],
        started_s: float,
    ) -> Flight:
        message = request.message
        variant = self.backend.variants[decision.variant]
        parameters = {
            "variant": variant.name,
            "task": decision.task,
            "decision_id": decision.decision_id,
        }
        asked = [output.name for output in message.outputs]
        unasked = LEARNED_OUTPUTS & variant.outputs - set(asked) if asked else ()
        return Flight(
            variant=variant,
            decision=decision,
            client_id=message.id,
            upstream_id=_upstream_id(message.id, decision.decision_id, taken_ids),
            change=response_change(self.backend.public_name, message.id, parameters),
            parameters=parameters,
            is_empty_final_wanted=message.parameters[EMPTY_FINAL].bool_param
            if EMPTY_FINAL in message.parameters
            else False,
            unasked=OutputFilter.of(unasked) if unasked else None,
            is_streaming=is_streaming(request),
            started_s=started_s,
        )

    def _count_admitted(self, flight: Flight) -> None:
        flight.variant.num_running += 1
        counters = self.counters.setdefault(flight.decision.task, TaskCounters())
        counters.num_requests += 1
        length = str(flight.variant.draft_length)
        counters.chosen[length] = counters.chosen.get(length, 0) + 1

    def _count_finished(self, flight: Flight, outcome: Outcome) -> None:
        counters = self.counters[flight.decision.task]
        counters.num_failed += outcome.finish_reason == "error"
        counters.num_cancelled += outcome.finish_reason == "cancelled"
        counters.num_finished += outcome.finish_reason not in ("error", "cancelled")
        counters.num_output_tokens += outcome.num_output_tokens
        counters.num_steps += outcome.num_steps
        counters.num_draft_tokens += outcome.num_draft_tokens
        counters.num_accepted_draft_tokens += outcome.num_accepted_draft_tokens


def _upstream_id(client_id: str, decision_id: str, taken: Collection[bytes]) -> bytes:
    """The id under which a request's responses are known: its own, where that tells them apart."""
    own = client_id.encode()
    return own if 0 < len(own) <= MAX_ID_CHARS and own not in taken else decision_id.encode()


def _outcome(flight: Flight, broken: str) -> Outcome:
    """What the last response with outputs says of a request; zeros where it says nothing."""
    response = parse_stream_response(flight.last).infer_response
    numbers = int_outputs(response, INT_OUTPUTS)

    def first(name: str) -> int:
        return _first(numbers.get(name, ()))

    return Outcome(
        draft_length=flight.variant.draft_length,
        num_steps=first("num_steps"),
        num_draft_tokens=first("num_draft_tokens"),
        num_accepted_draft_tokens=first("num_accepted_draft_tokens"),
        accepted_per_position=numbers.get("accepted_per_position", ()),
        num_output_tokens=first("num_output_tokens"),
        ttft_s=None if flight.first_s is None else flight.first_s - flight.started_s,
        duration_s=time.monotonic() - flight.started_s,
        finish_reason=broken or text_output(response, "finish_reason") or "stop",
    )


def _first(values: Iterable[int]) -> int:
    return next(iter(values), 0)
