"""A variant's engine statistics as Prometheus metrics on Triton's metrics port."""

import os
from typing import Any

from trt_mtp.serve.engine.base import Engine
from trt_mtp.serve.restarts import counts_in

# metric -> (field of EngineStatistics, help)
GAUGES = {
    "trt_mtp_requests_running": ("num_running", "Requests being answered"),
    "trt_mtp_requests_waiting": ("num_waiting", "Requests that wait for a slot"),
}
COUNTERS = {
    "trt_mtp_steps": ("num_steps", "Verify steps, summed over requests"),
    "trt_mtp_output_tokens": ("num_output_tokens", "Tokens answered"),
    "trt_mtp_draft_tokens": ("num_draft_tokens", "Tokens drafted"),
    "trt_mtp_accepted_draft_tokens": ("num_accepted_draft_tokens", "Drafted tokens accepted"),
}
# a gauge: each model's process says the same number, and counters would be added up
RESTARTS = "trt_mtp_server_restarts"


class VariantMetrics:
    """What the engine did since this was made; one thread may publish."""

    def __init__(self, engine: Engine, labels: dict[str, str], metric_family: Any) -> None:
        """Register the metrics with `labels`; `metric_family` is pb_utils.MetricFamily."""
        self._engine = engine
        self._published = engine.statistics()
        # Triton forgets a metric whose family is garbage collected
        self._families: list[Any] = []
        self._gauges = self._register(GAUGES, metric_family, "GAUGE", labels)
        self._counters = self._register(COUNTERS, metric_family, "COUNTER", labels)
        self._restarts = self._publish_restarts(metric_family)

    def publish(self) -> None:
        """Bring the metrics up to date; takes Triton some 0.1 ms each."""
        now = self._engine.statistics()
        for field, gauge in self._gauges.items():
            gauge.set(getattr(now, field))
        for field, counter in self._counters.items():
            increment = getattr(now, field) - getattr(self._published, field)
            if increment:
                counter.increment(increment)
        self._published = now

    def _register(
        self,
        definitions: dict[str, tuple[str, str]],
        metric_family: Any,
        kind: str,
        labels: dict[str, str],
    ) -> dict[str, Any]:
        metrics = {}
        for name, (field, text) in definitions.items():
            family = metric_family(name=name, description=text, kind=getattr(metric_family, kind))
            self._families.append(family)
            metrics[field] = family.Metric(labels=labels)
        return metrics

    def _publish_restarts(self, metric_family: Any) -> list[Any]:
        """How often `trt-mtp serve` started this server again, by reason; nothing without it."""
        counts = counts_in(os.environ)
        if not counts:
            return []
        text = "Starts of this Triton after the first, by reason"
        family = metric_family(name=RESTARTS, description=text, kind=metric_family.GAUGE)
        self._families.append(family)
        metrics = []
        for reason, count in counts.items():
            metrics.append(family.Metric(labels={"reason": reason}))
            metrics[-1].set(count)
        return metrics
