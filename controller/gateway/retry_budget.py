"""How many retries a gateway may make: a share of its requests, so that failures don't multiply."""

import time

from trt_mtp.controller.gateway.access.token_bucket import TokenBucket


class RetryBudget:
    """A token bucket filled by requests and, slowly, by time.

    It starts full and holds as much as a server may have in flight, because losing a server is no
    storm: every answer moves once. What retries again and again is held to the share.
    """

    SHARE = 0.2  # of the requests
    PER_S = 5.0
    CAPACITY = 1_000.0

    def __init__(self, full_s: "memoryview[float] | None" = None) -> None:
        """`full_s` is as `TokenBucket` has it."""
        self._bucket = TokenBucket(self.PER_S, self.CAPACITY, full_s)

    def request(self, now_s: float | None = None) -> None:
        """Count a request that is no retry."""
        self._bucket.take(-self.SHARE, time.monotonic() if now_s is None else now_s)

    def take(self, now_s: float | None = None) -> bool:
        """May a request be tried again? Counts it when it may."""
        now_s = time.monotonic() if now_s is None else now_s
        if self._bucket.wait_s(now_s):
            return False
        self._bucket.take(1, now_s)
        return True
