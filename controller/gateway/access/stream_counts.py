"""How many streams each caller has open: gRPC keeps of each what was sent of a message so far."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from trt_mtp.controller.gateway.access.authenticator import Owner
from trt_mtp.controller.gateway.failure import LimitError

RETRY_S = 1.0


class StreamCounts:
    """Streams by their callers, each of whom may have `limit`.

    gRPC tells no handler how much of a message has come before it is whole, so what a caller can
    have half sent is bounded by this number and the longest message alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts = Counter[Owner]()

    @contextmanager
    def one(self, owner: Owner) -> Iterator[None]:
        """One stream; raises LimitError when the owner has as many as it may."""
        if self._counts[owner] >= self._limit:
            raise LimitError(
                f"you have {self._limit} streams open here, and no more are taken: end some, or "
                f"send several requests on one (--max-caller-streams)",
                RETRY_S,
            )
        self._counts[owner] += 1
        try:
            yield
        finally:
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]
