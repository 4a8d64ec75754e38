"""A tenant's rate through all gateways: leased from the shared bucket in batches, spent here.

Nothing waits for the store. What a gateway takes before it has a lease, its share of the limit at
most, it owes the shared bucket, which may go below zero for it. While the store is away there is
the share alone, and nothing is owed.
"""

import math
from collections.abc import Callable

from trt_mtp.controller.gateway.shared.share import NumGateways, Share
from trt_mtp.controller.gateway.shared.store import Lease, LeaseAsk

AHEAD = 2.0  # leased at once, in what was asked for since the last lease
IDLE_S = 2.0  # without a request; then what is left is given back
MAX_WAIT_S = 1.0  # before an empty bucket is asked again: others may have given back
SOON_S = 0.1  # for a client when a lease is on its way


class LeasedBucket:
    """Looks as TokenBucket does; times are those of the monotonic clock."""

    def __init__(
        self,
        key: str,
        rate_per_s: float,
        capacity: float,
        num_gateways: NumGateways,
        wake: Callable[["LeasedBucket"], None],
    ) -> None:
        """`wake` is called when a lease would do good."""
        self._key = key
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._wake = wake
        self._share = Share(rate_per_s, capacity, num_gateways)
        self._is_away = False
        self._leased = 0.0  # and not spent; what is owed if negative
        self._demand = 0.0  # since the last lease
        self._used_at_s = -math.inf
        self._empty_until_s = -math.inf  # as the store said
        self._ask_again_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        """How long until there is at least 1 in it, as far as known here; 0 when there is."""
        self._used_at_s = now_s
        if self._leased >= 1.0:
            return 0.0
        is_empty = not self._is_away and now_s < self._empty_until_s
        wait_s = self._empty_until_s - now_s if is_empty else self._share.wait_s(now_s)
        if wait_s > 0.0:
            self._demand += 1.0
            self._wake(self)
        return wait_s if is_empty or self._is_away else min(wait_s, SOON_S)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, more than there is if need be."""
        self._used_at_s = now_s
        self._demand += amount
        if self._is_away or (self._leased < 1.0 and now_s >= self._empty_until_s):
            self._share.take(amount, now_s)
        if not self._is_away:
            self._leased -= amount
        if self._leased < self._wanted() / 2:
            self._wake(self)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to give back or to pay."""
        return self._leased == 0.0

    def ask(self, now_s: float) -> LeaseAsk | None:
        """What to ask the store for now, if anything; `answer` or `lose` follows."""
        if now_s - self._used_at_s >= IDLE_S:
            return None if self.is_idle else self._asking(-self._leased, 0.0)
        owed = max(-self._leased, 0.0)
        if now_s < self._ask_again_s:
            return self._asking(owed, 0.0) if owed else None
        wanted = math.ceil(max(self._wanted() - max(self._leased, 0.0), 0.0))
        return self._asking(owed, wanted) if owed or wanted else None

    def give_back(self) -> LeaseAsk | None:
        """What to tell the store when this gateway ends."""
        return None if self.is_idle else self._asking(-self._leased, 0.0)

    def answer(self, ask: LeaseAsk, lease: Lease, now_s: float) -> None:
        """The store has taken what was owed and granted a lease."""
        self._is_away = False
        self._leased += ask.owed + lease.granted
        if ask.wanted:
            self._demand = 0.0
        if ask.wanted and lease.granted < ask.wanted:
            self._ask_again_s = now_s + min(lease.wait_s, MAX_WAIT_S)
        if lease.granted < ask.wanted or (self._leased < 1.0 and ask.owed >= 0.0):
            self._empty_until_s = now_s + lease.wait_s

    def lose(self, now_s: float) -> None:
        """The store is away: the share begins with what was leased or is owed."""
        if self._leased > 0.0 or now_s < self._empty_until_s:
            self._share.begin_with(self._leased, now_s)
        self._is_away = True
        self._leased = 0.0
        self._empty_until_s = self._ask_again_s = -math.inf

    def _wanted(self) -> float:
        """How much to have leased: for what comes until the next lease, the share at least."""
        return min(max(AHEAD * self._demand, self._share.capacity), self._capacity)

    def _asking(self, owed: float, wanted: float) -> LeaseAsk:
        return LeaseAsk(self._key, self._rate_per_s, self._capacity, owed, wanted)
