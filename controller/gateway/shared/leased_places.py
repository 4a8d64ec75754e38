"""A tenant's requests in flight through all gateways: each holds some of the places.

Places are held for a while and renewed, so those of a gateway that was killed come back.
"""

import math
import time
from collections.abc import Callable

from trt_mtp.controller.gateway.shared.share import NumGateways
from trt_mtp.controller.gateway.shared.store import PlacesAsk

TTL_S = 15.0
RENEW_S = 5.0
IDLE_S = 1.0  # without a request in flight; then what is held is given back
ASK_AGAIN_S = 0.2  # after the store said that there are no more


class LeasedPlaces:
    """Looks as the scoreboard's counter does."""

    def __init__(
        self, tenant: str, num_gateways: NumGateways, wake: Callable[["LeasedPlaces"], None]
    ) -> None:
        """`wake` is called when more or fewer places would do good."""
        self._tenant = tenant
        self._num_gateways = num_gateways
        self._wake = wake
        self._running = 0
        self._limit = 0  # as last asked for; 0 while nobody asks
        self._held = 0
        self._is_unanswered = False  # what was asked last: the store may know of places
        self._is_away = False
        self._full_until_s = -math.inf
        self._renew_s = -math.inf

    def add(self, change: int) -> None:
        """`change` more are in flight here."""
        self._running += change
        if not self._running:
            self._renew_s = min(self._renew_s, time.monotonic() + IDLE_S)
        if self._limit:
            self._wake(self)

    def is_over(self, limit: int) -> bool:
        """Whether more are in flight here than may be.

        Until the store has answered, the gateway's share of the limit may be, too.
        """
        self._limit = limit
        if self._running <= self._held:
            return False
        self._wake(self)
        is_full = not self._is_away and time.monotonic() < self._full_until_s
        return is_full or self._running > max(self._held, self._share)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to renew."""
        return not self._held and not self._running

    def ask(self, now_s: float) -> PlacesAsk | None:
        """What to ask the store for now, if anything; `answer` or `lose` follows."""
        if not self._limit:
            return None
        wanted = min(self._running + self._share, self._limit) if self._running else 0
        is_short = self._running >= self._held and now_s >= self._full_until_s
        is_much = wanted + self._share < self._held
        if now_s >= self._renew_s or (is_short and wanted > self._held) or is_much:
            self._is_unanswered = True
            return PlacesAsk(self._tenant, self._running, wanted, self._limit)
        return None

    def give_back(self) -> PlacesAsk | None:
        """What to tell the store when this gateway ends."""
        may_hold = self._held or self._is_unanswered
        return PlacesAsk(self._tenant, 0, 0, self._limit) if may_hold else None

    def answer(self, ask: PlacesAsk, held: int, now_s: float) -> None:
        """The store says how many this gateway has now."""
        self._is_away = self._is_unanswered = False
        self._held = held
        self._renew_s = now_s + RENEW_S if held else math.inf
        if held < ask.wanted:
            self._full_until_s = now_s + ASK_AGAIN_S

    def lose(self, now_s: float) -> None:
        """The store is away: the share of the limit is what may be in flight."""
        self._is_away = True
        self._held = 0
        self._renew_s = now_s

    @property
    def _share(self) -> int:
        return max(self._limit // self._num_gateways(), 1)
