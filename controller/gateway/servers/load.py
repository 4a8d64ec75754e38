"""How busy a variant is: what this gateway sent it, and what its responses say of everybody's."""

import math
from typing import NamedTuple

from trt_mtp.controller.outcome import MeanLoad

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


class MeterReading(NamedTuple):
    """What a meter has summed up until a monotonic time."""

    at: float
    request_s: float
    token_s: float


class LoadMeter:
    """Requests of this gateway in flight and the tokens in their caches, summed over time.

    Two readings tell the means between them.
    """

    __slots__ = ("_reading", "num_running", "num_tokens")

    def __init__(self) -> None:
        self.num_running = 0
        self.num_tokens = 0.0
        self._reading = MeterReading(0.0, 0.0, 0.0)

    def change(self, num: int, num_tokens: float, now_s: float) -> None:
        """Some begin or, where the numbers are negative, end at the monotonic time `now_s`."""
        self._reading = self.reading(now_s)
        self.num_running += num
        self.num_tokens += num_tokens

    def reading(self, now_s: float) -> MeterReading:
        """The sums until now."""
        at, request_s, token_s = self._reading
        passed_s = now_s - at
        return MeterReading(
            now_s, request_s + passed_s * self.num_running, token_s + passed_s * self.num_tokens
        )

    def tokens_of(self, num_running: float) -> float | None:
        """Tokens of as many requests, if others are as long as this gateway's; None: not known."""
        if not self.num_running:
            return None if num_running else 0.0
        return self.num_tokens / self.num_running * num_running


def mean_load(begun: MeterReading, ended: MeterReading, num_others: float) -> MeanLoad | None:
    """What was in flight on average between two readings; None if no time passed.

    Beside this gateway's requests there were `num_others`, taken to be as long as its own.
    """
    passed_s = ended.at - begun.at
    if passed_s <= 0:
        return None
    num = (ended.request_s - begun.request_s) / passed_s
    tokens = (ended.token_s - begun.token_s) / passed_s
    return MeanLoad(num + num_others, tokens * (num + num_others) / num if num else 0.0)
