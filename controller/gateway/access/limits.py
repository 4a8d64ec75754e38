"""What a tenant's limits are counted in: by this gateway's workers, or by all gateways together."""

from typing import Protocol


class Bucket(Protocol):
    """A rate with a burst; see TokenBucket."""

    def wait_s(self, now_s: float) -> float:
        """How long until there is at least 1 in it; 0 when there is."""

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, more than there is if need be."""


class Places(Protocol):
    """A tenant's requests in flight."""

    def add(self, change: int) -> None:
        """`change` more are in flight here."""

    def is_over(self, limit: int) -> bool:
        """Whether more than `limit` are in flight, or more than may be here."""


class Limits(Protocol):
    """Where buckets and places are: Scoreboard in memory, LeasedLimits in a shared store."""

    def bucket(self, tenant: str, what: str, rate_per_s: float, capacity: float) -> Bucket:
        """The bucket of what a tenant uses; another rate is another bucket."""

    def places(self, tenant: str) -> Places:
        """The tenant's places."""
