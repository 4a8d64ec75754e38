"""How many streams, or calls, each caller has open: gRPC keeps what was sent of each so far."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from trt_mtp.controller.gateway.access.authenticator import Owner
from trt_mtp.controller.gateway.failure import LimitError

RETRY_S = 1.0
STREAMS, CALLS = "--max-caller-streams", "--max-streams"


class StreamCounts:
    """Streams by their callers, each of whom may have `limit`.

    gRPC tells no handler how much of a message has come before it is whole, so what a caller can
    have half sent is bounded by this number and the longest message alone.
    """

    def __init__(self, limit: int, what: str = "streams", option: str = STREAMS) -> None:
        """`what` is counted, and `option` is that of its limit."""
        self._limit, self._what, self._option = limit, what, option
        self._counts = Counter[Owner]()

    @contextmanager
    def one(self, owner: Owner) -> Iterator[None]:
        """One stream; raises LimitError when the owner has as many as it may."""
        if self._counts[owner] >= self._limit:
            raise LimitError(
                f"you have {self._limit} {self._what} open here, and no more are taken: end some, "
                f"or send several requests on one stream ({self._option})",
                RETRY_S,
            )
        self._counts[owner] += 1
        try:
            yield
        finally:
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]
