"""A gateway's share of a limit: what it may use when it can't know what the others do."""

from collections.abc import Callable

NumGateways = Callable[[], int]


class Share:
    """A token bucket of 1/N of the rate and of the burst, N being the gateways last seen.

    A burst is 1 at least, or a small limit would let nothing through.
    """

    __slots__ = ("_at_s", "_capacity", "_level", "_num_gateways", "_rate_per_s")

    def __init__(self, rate_per_s: float, capacity: float, num_gateways: NumGateways) -> None:
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._num_gateways = num_gateways
        self._level = capacity
        self._at_s = 0.0

    @property
    def capacity(self) -> float:
        """How much may come at once."""
        return max(self._capacity / self._num_gateways(), 1.0)

    def wait_s(self, now_s: float) -> float:
        """How long until there is 1 in it."""
        self._fill(now_s)
        missing = 1.0 - self._level
        return 0.0 if missing <= 1e-9 else missing * self._num_gateways() / self._rate_per_s

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, more than there is if need be."""
        self._fill(now_s)
        self._level -= amount

    def begin_with(self, level: float, now_s: float) -> None:
        """From now on it holds `level`, or its burst if that is less."""
        self._level, self._at_s = level, now_s

    def _fill(self, now_s: float) -> None:
        added = max(now_s - self._at_s, 0.0) * self._rate_per_s / self._num_gateways()
        self._level = min(self._level + added, self.capacity)
        self._at_s = max(now_s, self._at_s)
