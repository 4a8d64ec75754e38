"""What the gateway counts and times, as Prometheus metrics.

Labels are `task`, one of the known tasks, and `variant`, one that is or was hosted: their number
is bounded whatever clients send.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.gateway.failure import WrongRequestError
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import TrtMtpError

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.call import InferenceCall
    from trt_mtp.controller.gateway.lease import Lease

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client, set for workers
PREFIX = "trt_mtp_gateway_"
OTHER_TASK = "other"  # what a policy calls a task that is not among ours

TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
ACCEPTANCE_LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
DECISION_S = (25e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3)
REGRETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

# without a time stamp beside every series, which nobody reads
disable_created_metrics()  # type: ignore[no-untyped-call]


# what statistics call the counters
_STATISTICS = {
    "requests": "num_requests",
    "finished": "num_finished",
    "failed": "num_failed",
    "cancelled": "num_cancelled",
    "failed_over": "num_failed_over",
    "output_tokens": "num_output_tokens",
    "steps": "num_steps",
    "draft_tokens": "num_draft_tokens",
    "accepted_draft_tokens": "num_accepted_draft_tokens",
}


@dataclass(frozen=True, slots=True)
class _Series:
    """The metrics of one task on one variant, looked up once."""

    requests: Any
    finished: Any
    failed: Any
    cancelled: Any
    failed_over: Any
    output_tokens: Any
    steps: Any
    draft_tokens: Any
    accepted_draft_tokens: Any
    ttft: Any
    tpot: Any
    acceptance_length: Any


class GatewayMetrics:
    """Told of every request when it is admitted and when it is over; nothing is done per token."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str], _Series] = {}
        self._families = _Series(
            requests=self._counter("requests", "Requests sent to a variant"),
            finished=self._counter("requests_finished", "Requests whose answer is complete"),
            failed=self._counter("requests_failed", "Requests whose answer broke off"),
            cancelled=self._counter("requests_cancelled", "Requests whose client left"),
            failed_over=self._counter(
                "requests_failed_over", "Requests continued elsewhere, by the variant they left"
            ),
            output_tokens=self._counter("output_tokens", "Tokens answered"),
            steps=self._counter("steps", "Verify steps"),
            draft_tokens=self._counter("draft_tokens", "Tokens drafted"),
            accepted_draft_tokens=self._counter("accepted_draft_tokens", "Drafts accepted"),
            ttft=self._histogram(
                "ttft_seconds", "Time to the first token of streamed answers", TTFT_S
            ),
            tpot=self._histogram(
                "tpot_seconds", "Time per token after the first of streamed answers", TPOT_S
            ),
            acceptance_length=self._histogram(
                "acceptance_length", "Tokens per step where drafts are made", ACCEPTANCE_LENGTHS
            ),
        )
        self._abandoned = self._counter(
            "answers_abandoned",
            "Answers that nobody waited for: ended by the variant, lost with their stream, or "
            "dropped with their connection because nothing came",
            ("variant", "rest"),
        )
        self._refused = self._counter(
            "requests_refused", "Requests that were not admitted, or wrong", ()
        )
        self._left = self._counter(
            "requests_left", "Requests whose client left while they waited for a variant", ()
        )
        self._waiting = self._gauge("requests_waiting", "Requests waiting for a variant", ())
        self._in_flight = self._gauge("requests_in_flight", "Requests being answered")
        self._ready = self._gauge("variant_ready", "1 for a variant that can take requests")
        self._decision = self._histogram(
            "decision_seconds", "Time to choose a variant", DECISION_S, ()
        )
        self._regret = self._histogram(
            "regret_ratio",
            "Expected time on the chosen variant over that on the best one, less 1",
            REGRETS,
            ("task",),
        )
        self._drifts = self._counter(
            "acceptance_drifts", "Sustained shifts of acceptance that were learned again", ("task",)
        )
        for task in TASKS:  # from 0 on, or the first one would be no increase
            self._drifts.labels(task)

    def placed(self, lease: "Lease", decision_s: float) -> None:
        """A call has a lease, which took `decision_s` to decide; perhaps not its first."""
        decision, failed = lease.decision, lease.call.failed_variants
        if failed:
            self._of(decision.task, failed[-1].name).failed_over.inc()
            return
        self._of(decision.task, lease.replica.name).requests.inc()
        self._decision.observe(decision_s)
        regret = regret_of(decision)
        if regret is not None:
            self._regret.labels(_known(decision.task)).observe(regret)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Around the reading of a request, which is refused where that raises TrtMtpError."""
        try:
            yield
        except TrtMtpError:
            self.refused()
            raise

    @contextmanager
    def counted(self, call: "InferenceCall") -> Iterator[None]:
        """Around the whole answer to a call: its end is counted, whichever it is."""
        try:
            yield
        except asyncio.CancelledError:
            if call.decision is None:
                self._left.inc()
            self._ended(call, "cancelled")
            raise
        except WrongRequestError:
            self.refused()
            raise
        except TrtMtpError:
            if call.decision is None:
                self.refused()
            self._ended(call, "failed")
            raise
        except BaseException:
            self._ended(call, "failed")
            raise
        self._ended(call, "finished")

    def _ended(self, call: "InferenceCall", how: str) -> None:
        """Count a call by its latest lease; one that never had any doesn't count."""
        outcome = call.outcome
        if call.decision is None or call.replica is None or outcome is None:
            return
        series = self._of(call.decision.task, call.replica.name)
        getattr(series, how).inc()
        # a variant's word, and a counter takes nothing below 0
        series.output_tokens.inc(max(outcome.num_output_tokens, 0))
        series.steps.inc(max(outcome.num_steps, 0))
        series.draft_tokens.inc(max(outcome.num_draft_tokens, 0))
        series.accepted_draft_tokens.inc(max(outcome.num_accepted_draft_tokens, 0))
        if outcome.num_draft_tokens and outcome.num_steps:
            length = 1 + outcome.num_accepted_draft_tokens / outcome.num_steps
            series.acceptance_length.observe(length)
        if call.is_streaming and outcome.ttft_s is not None:
            series.ttft.observe(outcome.ttft_s)
            if outcome.num_output_tokens > 1:
                decode_s = outcome.duration_s - outcome.ttft_s
                series.tpot.observe(decode_s / (outcome.num_output_tokens - 1))

    def wound_down(self, variant: str, rest: str) -> None:
        """Nobody waited for the rest of an answer of `variant`; what became of it."""
        self._abandoned.labels(variant, rest).inc()

    def drifted(self, task: str) -> None:
        """The acceptance of `task` has shifted for good."""
        self._drifts.labels(_known(task)).inc()

    def refused(self) -> None:
        """A request was not admitted, or its variant says that it is wrong."""
        self._refused.inc()

    def waiting(self, change: int) -> None:
        """`change` more requests wait for a variant."""
        self._waiting.inc(change)

    def in_flight(self, variant: str, change: int) -> None:
        """`change` more requests are being answered by `variant`."""
        self._in_flight.labels(variant).inc(change)

    def render(self, ready: Mapping[str, bool]) -> bytes:
        """All metrics in Prometheus' text format; `ready` has the hosted variants.

        Where several workers share their metrics, those of all of them.
        """
        for variant, is_ready in ready.items():
            self._ready.labels(variant).set(is_ready)
            self._in_flight.labels(variant)
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        everything = CollectorRegistry()
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
        return generate_latest(everything)

    def tasks(self, draft_lengths: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """This process's counters by task, as a JSON object.

        `chosen` has requests by draft length, of variants whose length is in `draft_lengths`.
        """
        tasks: dict[str, dict[str, Any]] = {}
        for name, key in _STATISTICS.items():
            for task, variant, count in self._counts(name):
                counters = tasks.setdefault(
                    task, {**dict.fromkeys(_STATISTICS.values(), 0), "chosen": {}}
                )
                counters[key] += count
                if name == "requests" and variant in draft_lengths:
                    chosen, length = counters["chosen"], str(draft_lengths[variant])
                    chosen[length] = chosen.get(length, 0) + count
        for task, counters in tasks.items():
            [drifts] = self._drifts.labels(task).collect()
            counters["num_drifts"] = int(drifts.samples[0].value)
        return dict(sorted(tasks.items()))

    def num_refused(self) -> int:
        """Requests that were not admitted, or wrong."""
        [metric] = self._refused.collect()
        return sum(int(sample.value) for sample in metric.samples)

    def _counts(self, name: str) -> Iterator[tuple[str, str, int]]:
        """Task, variant and value of each series of a counter."""
        [metric] = getattr(self._families, name).collect()
        for sample in metric.samples:
            yield sample.labels["task"], sample.labels["variant"], int(sample.value)

    def _of(self, task: str, variant: str) -> _Series:
        labels = (_known(task), variant)
        series = self._series.get(labels)
        if series is None:
            names = _Series.__slots__
            series = _Series(*(getattr(self._families, name).labels(*labels) for name in names))
            self._series[labels] = series
        return series

    def _counter(
        self, name: str, text: str, labels: tuple[str, ...] = ("task", "variant")
    ) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ("variant",)) -> Gauge:
        # how the values of several workers become one
        mode: Literal["livesum", "livemostrecent"] = (
            "livemostrecent" if name == "variant_ready" else "livesum"
        )
        return Gauge(PREFIX + name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...],
        labels: tuple[str, ...] = ("task", "variant"),
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)


def _known(task: str) -> str:
    return task if task in TASKS else OTHER_TASK


def regret_of(decision: Decision) -> float | None:
    """How much longer the chosen variant is expected to take than the best one, as a ratio less 1.

    None for a decision that has no expected times.
    """
    times = [c.total_s for c in decision.candidates if not c.rejected and c.total_s > 0]
    chosen_s = decision.chosen.total_s
    return chosen_s / min(times) - 1 if times and chosen_s > 0 else None
