"""A token bucket: a rate that may burst, and a debt that is waited off."""


class TokenBucket:
    """Fills at `rate_per_s` up to `capacity`; times are those of a clock that never goes back."""

    __slots__ = ("_capacity", "_level", "_rate_per_s", "_then_s")

    def __init__(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        """Full at first."""
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._level = capacity
        self._then_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until there is at least 1 in it; 0 when there is."""
        self._fill(now_s)
        return max(0.0, (1 - self._level) / self._rate_per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, more than there is if need be."""
        self._fill(now_s)
        self._level -= amount

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._then_s)
        self._level = min(self._capacity, self._level + passed_s * self._rate_per_s)
        self._then_s += passed_s
