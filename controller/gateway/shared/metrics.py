"""The metrics of what gateways share, which exist where something is shared."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from trt_mtp.controller.gateway.metrics import PREFIX


class SharedMetrics:
    """Of several workers, the worst is what one reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reachable = Gauge(
            PREFIX + "shared_reachable",
            "1 while the shared store answers",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._reached_at = Gauge(
            PREFIX + "shared_last_exchange_timestamp_seconds",
            "When the shared store answered last, in Unix time; 0 before it ever did",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._gateways = Gauge(
            PREFIX + "shared_gateways",
            "Gateways that share, as last seen, this one among them",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._errors = Counter(
            PREFIX + "shared_errors",
            "Exchanges with the shared store that failed",
            registry=registry,
        )

    def reached(self, now_s: float, *, is_reachable: bool) -> None:
        """The store answered at `now_s`, in Unix time."""
        self._reached_at.set(now_s)
        self._reachable.set(is_reachable)

    def failed(self) -> None:
        """It did not answer, or with an error."""
        self._errors.inc()
        self._reachable.set(0)

    def saw(self, num_gateways: int) -> None:
        """How many gateways share."""
        self._gateways.set(num_gateways)
