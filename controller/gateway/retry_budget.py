"""How many retries a gateway may make: a share of its requests, so that failures don't multiply."""

import time


class RetryBudget:
    """A token bucket filled by requests and, slowly, by time.

    It starts full and holds as much as a server may have in flight, because losing a server is no
    storm: every answer moves once. What retries again and again is held to the share.
    """

    SHARE = 0.2  # of the requests
    PER_S = 5.0
    CAPACITY = 1_000.0

    def __init__(self, now_s: float | None = None) -> None:
        self._tokens = self.CAPACITY
        self._filled_s = time.monotonic() if now_s is None else now_s

    def request(self) -> None:
        """Count a request that is no retry."""
        self._tokens = min(self._tokens + self.SHARE, self.CAPACITY)

    def take(self, now_s: float | None = None) -> bool:
        """May a request be tried again? Counts it when it may."""
        now_s = time.monotonic() if now_s is None else now_s
        passed_s, self._filled_s = now_s - self._filled_s, now_s
        self._tokens = min(self._tokens + self.PER_S * passed_s, self.CAPACITY)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
