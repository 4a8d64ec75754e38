"""How long a client has had its answer wait: meanwhile it holds a place at a variant.

What waits for a client is bounded (outbox.py, http/sending.py), so that an answer that is longer
goes on as fast as its client takes it. One that takes a little now and then never stalls, and could
hold its place for as long as it likes.
"""

import time

from trt_mtp.controller.gateway.failure import ClientStalledError

HOLD_S = 60.0  # beyond as long as the variant itself takes for the answer
TIMED_SHARE = 0.1  # of an answer's time, up to which that is its variant's: answers differ as much
TIMED_S = 0.05  # the same of a short one, whose messages take the gateway itself a part of its time


class ClientPauses:
    """Of one answer: from each message that its client is given until it asks for the next."""

    __slots__ = ("_since", "_total_s")

    def __init__(self) -> None:
        self._since = 0.0  # monotonic; 0 while nothing was given
        self._total_s = 0.0

    def begin(self) -> None:
        """The client is given a message."""
        self._since = time.monotonic()

    def end(self, answer_s: float) -> None:
        """It asks for the next one, `answer_s` after the request was sent.

        Raises ClientStalledError if it has had the answer wait for too long in all.
        """
        if not self._since:
            return
        self._total_s += time.monotonic() - self._since
        self._since = 0.0
        if self._total_s > HOLD_S + answer_s - self._total_s:
            raise ClientStalledError(
                f"the client had its answer wait for {self._total_s:.0f} s in all, longer than its "
                f"variant took: take it faster, or ask for less of it"
            )

    def are_long(self, answer_s: float) -> bool:
        """Whether they are a part of the answer's `answer_s` that counts."""
        return self._total_s > max(TIMED_S, TIMED_SHARE * answer_s)
