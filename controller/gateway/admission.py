"""Who gets the next free slot: requests that all variants are too busy for wait here, not there.

One bounded queue, by Triton's `priority` and then by arrival. Requests that the same variants could
take form one line, so that nobody waits behind a request that waits for something else.
"""

import asyncio
import heapq
import itertools
import time
from dataclasses import dataclass, field

from trt_mtp.controller.gateway.dispatch import Dispatcher
from trt_mtp.controller.gateway.failure import QueueFullError, WaitedTooLongError
from trt_mtp.controller.gateway.flight import Flight
from trt_mtp.controller.gateway.kserve import parameter_value
from trt_mtp.controller.gateway.scoreboard import Line
from trt_mtp.errors import TrtMtpError

# github.com/triton-inference-server/common, protobuf/model_config.proto, ModelDynamicBatching:
# 1 is the highest priority; 0 and none are the default level, which is the server's to choose
DEFAULT_PRIORITY = 100
FAILED_OVER_PRIORITY = 0  # before all others: its client has begun to read

_Line = tuple[object, ...]  # what requests have in common that the same variants can take


@dataclass(order=True, slots=True)
class Waiter:
    """A request in its place in the line."""

    priority: int
    number: int  # by arrival
    flight: Flight = field(compare=False)
    placed: "asyncio.Future[None]" = field(compare=False)


class Admission:
    """Make it inside the event loop that uses it."""

    def __init__(self, dispatcher: Dispatcher, max_waiting: int, waiting: Line) -> None:
        """`max_waiting` bounds the queues of all workers, which are counted in `waiting`.

        A request beyond it is refused at once.
        """
        self._dispatcher = dispatcher
        self._max_waiting = max_waiting
        self._waiting = waiting
        self._lines: dict[_Line, list[Waiter]] = {}  # each a heap
        self._numbers = itertools.count()
        dispatcher.on_freed = self.serve_waiting

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a variant."""
        return sum(len(line) for line in self._lines.values())

    def serve_waiting(self) -> None:
        """Place whoever can be placed now, the first in any line first."""
        blocked = set[_Line]()
        while lines := [line for line in self._lines if line not in blocked]:
            line = min(lines, key=lambda line: self._lines[line][0])
            waiter = self._lines[line][0]
            try:
                if waiter.placed.done():
                    pass  # its client is gone
                elif self._dispatcher.place(waiter.flight):
                    waiter.placed.set_result(None)
                else:
                    blocked.add(line)
                    continue
            except TrtMtpError as error:
                waiter.placed.set_exception(error)
            self._forget(line, waiter)

    async def place(self, flight: Flight, deadline_s: float | None) -> None:
        """Wait until the flight has a variant; `deadline_s` is of the monotonic clock.

        Raises QueueFullError, WaitedTooLongError, or TrtMtpError when no variant can take it.
        """
        line = _line(flight)
        if line not in self._lines and self._dispatcher.place(flight):
            return
        if self._waiting.total >= self._max_waiting and not flight.left:
            raise QueueFullError(
                f"all variants are busy and {self._max_waiting} requests wait, which is the "
                f"limit (--max-waiting): send the request again later"
            )
        placed = asyncio.get_running_loop().create_future()
        waiter = Waiter(_priority(flight), next(self._numbers), flight, placed)
        heapq.heappush(self._lines.setdefault(line, []), waiter)
        self._count_waiting(+1)
        try:
            async with asyncio.timeout_at(_loop_time(deadline_s)):
                await placed
        except TimeoutError:
            raise WaitedTooLongError(
                f"the request's time was over after {time.monotonic() - flight.started_s:.1f} s of "
                f"waiting for a variant: allow it more, or send it when less is going on"
            ) from None
        finally:
            self._forget(line, waiter)
            if placed.done() and not placed.cancelled():
                placed.exception()  # seen, though nobody waits for it

    def _count_waiting(self, change: int) -> None:
        self._waiting.add(change)
        self._dispatcher.metrics.waiting(change)

    def _forget(self, line: _Line, waiter: Waiter) -> None:
        waiters = self._lines.get(line, [])
        if waiter in waiters:
            waiters.remove(waiter)
            heapq.heapify(waiters)
            self._count_waiting(-1)
        if not waiters:
            self._lines.pop(line, None)


def _line(flight: Flight) -> _Line:
    left = frozenset(variant.key for variant in flight.left)
    return flight.features.hint_draft_length, left, bool(flight.emitted)


def _priority(flight: Flight) -> int:
    if flight.left:
        return FAILED_OVER_PRIORITY
    parameters = flight.request.message.parameters
    value = parameter_value(parameters["priority"]) if "priority" in parameters else None
    return value if isinstance(value, int) and value > 0 else DEFAULT_PRIORITY


def _loop_time(monotonic_s: float | None) -> float | None:
    """A time of the monotonic clock in the event loop's."""
    if monotonic_s is None:
        return None
    return asyncio.get_running_loop().time() + monotonic_s - time.monotonic()
