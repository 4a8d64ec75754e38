"""How busy a variant is: what this gateway sent it, and what its responses say of everybody's."""

import math

DECAY_S = 5.0  # about as long as an answer takes: what ran then is over, and nobody said what came


class OtherLoad:
    """Requests in flight on a variant that others sent, by its latest response.

    What is known of them fades, so that a variant which nobody here asks counts as idle again.
    """

    __slots__ = ("_at", "_num", "until")

    def __init__(self) -> None:
        self._num = 0
        self._at = 0.0
        self.until = -math.inf  # when less than half a request is left: most are past that

    def note(self, num_in_flight: int, num_own: int, now_s: float) -> None:
        """A response, read at the monotonic time `now_s`, says how many were in flight.

        `num_own` of them are this gateway's. Those that it sent and that have not arrived are
        counted among its own, so others are rather too few than too many.
        """
        self._num, self._at = num_in_flight - num_own, now_s
        self.until = now_s + DECAY_S * math.log(2 * self._num) if self._num > 0 else -math.inf

    def num(self, now_s: float) -> int:
        """Requests of others that are believed to be in flight."""
        if now_s > self.until:
            return 0
        return int(self._num * math.exp((self._at - now_s) / DECAY_S) + 0.5)
