"""A token bucket: a rate that may burst, and a debt that is waited off."""

ROUNDING_S = 1e-9


class TokenBucket:
    """Fills at `rate_per_s` up to `capacity`; times are those of the monotonic clock.

    All its state is the time at which it will be full (the generic cell rate algorithm, ITU-T
    I.371), so that processes can share one without a lock. When two take out in the same moment,
    what one of them took may be forgotten.
    """

    __slots__ = ("_burst_s", "_full_s", "_rate_per_s")

    def __init__(
        self, rate_per_s: float, capacity: float, full_s: "memoryview[float] | None" = None
    ) -> None:
        """`full_s` has one element, of type double; 0 is full."""
        self._rate_per_s = rate_per_s
        self._burst_s = (capacity - 1) / rate_per_s  # to fill all but the last 1
        self._full_s = memoryview(bytearray(8)).cast("d") if full_s is None else full_s

    def wait_s(self, now_s: float) -> float:
        """How long until there is at least 1 in it; 0 when there is."""
        wait_s = self._full_s[0] - now_s - self._burst_s
        return wait_s if wait_s > ROUNDING_S else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, more than there is if need be; put it in where it is negative."""
        self._full_s[0] = max(self._full_s[0], now_s) + amount / self._rate_per_s
