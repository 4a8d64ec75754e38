"""Who gets the next free slot: requests that no variant can take now wait here, not there.

One bounded queue, by Triton's `priority` and then by turns of who sent them: whoever sends many
waits for itself, and there is room for others' requests. Requests that the same variants
could take have the same key, so that nobody waits behind a request that waits for something else.
Busy variants are waited for as long as the client does; variants that aren't ready, for a limited
time.
"""

import asyncio
import itertools
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.failure import NotReadyError, QueueFullError, WaitedTooLongError
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.scoreboard import SharedCounter

# github.com/triton-inference-server/common, protobuf/model_config.proto, ModelDynamicBatching:
# 1 is the highest priority; 0 and none are the default level, which is the server's to choose
DEFAULT_PRIORITY = 100
# of the queue that requests with grammars may have, which variants may have to try one by one; and
# of what they leave of that, times how much one owner may have, so that there is always room for
# another's (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
# switches", IEEE/ACM Trans. Netw. 6(2), 1998)
GUIDED_SHARE = 0.75
OWNER_FACTOR = 4
FAILED_OVER_PRIORITY = 0  # before all others: its client has begun to read

QueueKey = tuple[object, ...]  # what requests have in common that the same variants can take


@dataclass(order=True, slots=True)
class Waiter:
    """A call in its place in the queue."""

    priority: int
    turn: int  # of its owner
    number: int  # by arrival
    call: InferenceCall = field(compare=False)
    placed: "asyncio.Future[Lease]" = field(compare=False)
    not_ready_at: float | None = field(default=None, compare=False)  # monotonic, if none is ready


class AdmissionQueue:
    """Make it inside the event loop that uses it."""

    def __init__(
        self,
        try_place: Callable[[InferenceCall], Lease | None],
        kind: Callable[[InferenceCall], QueueKey],
        max_waiting: int,
        failover_wait_s: float,
        waiting: SharedCounter,
        on_waiting: Callable[[int], None],
    ) -> None:
        """`try_place` gives a call its lease, None if what could take it is full.

        It raises NotReadyError if nothing is ready that could take it, TrtMtpError if nothing can.
        Calls of the same `kind` can be taken by the same variants.

        `max_waiting` bounds the queues of all workers, which are counted in `waiting`. A request
        beyond it is refused at once, one for which no variant gets ready within `failover_wait_s`
        is then. `on_waiting` is told of changes of this worker's queue.
        """
        self._try_place = try_place
        self._kind = kind
        self._max_waiting = max_waiting
        self._failover_wait_s = failover_wait_s
        self._waiting = waiting
        self._on_waiting = on_waiting
        self._waiters: dict[QueueKey, list[Waiter]] = {}  # each in order
        self._numbers = itertools.count()
        self._owners = Counter[object]()  # who waits here, and with how many
        self._guided = Counter[object]()  # the same, of those with grammars
        self._turns: dict[object, list[int]] = {}  # of those of each that wait, in order
        self._turn = 0  # up to which all owners were served

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a variant."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def serve_waiting(self) -> None:
        """Place whoever can be placed now, the first of any key first; never raises."""
        blocked = set[QueueKey]()
        while keys := [key for key in self._waiters if key not in blocked]:
            key = min(keys, key=lambda key: self._waiters[key][0])
            waiter = self._waiters[key][0]
            if self._is_settled(waiter):
                # not its own: its owner may wait elsewhere with many that came before it, and
                # whoever comes next would come after all of them
                self._turn = max(self._turn, self._turns[waiter.call.owner][0])
                self._forget(key, waiter)
            else:
                blocked.add(key)

    def _is_settled(self, waiter: Waiter) -> bool:
        """Place a call if it can be; true if it need wait no longer, for whatever reason."""
        if waiter.placed.done():  # its client is gone
            return True
        try:
            lease = self._try_place(waiter.call)
        except NotReadyError as error:
            return self._has_waited_enough(waiter, error)
        except Exception as error:  # this request's, whoever's end it was that freed the place
            waiter.placed.set_exception(error)
            return True
        waiter.not_ready_at = None
        if lease is None:
            return False
        waiter.placed.set_result(lease)
        return True

    def _has_waited_enough(self, waiter: Waiter, error: NotReadyError) -> bool:
        now = time.monotonic()
        if waiter.not_ready_at is None:
            waiter.not_ready_at = now
        waited_s = now - waiter.not_ready_at
        if waited_s < self._failover_wait_s:
            return False
        waiter.placed.set_exception(
            NotReadyError(f"{error}, after {waited_s:.1f} s of waiting for one (--failover-wait-s)")
        )
        return True

    async def place(self, call: InferenceCall) -> Lease:
        """Wait until a variant can take the call; the lease is the caller's to close.

        Raises QueueFullError, WaitedTooLongError, NotReadyError, or TrtMtpError if no variant could
        take it at all.
        """
        key = self._kind(call)
        if key not in self._waiters and (lease := self._at_once(call)) is not None:
            return lease
        if not call.failed_variants:
            self._check_room(call)
        placed = asyncio.get_running_loop().create_future()
        waiter = Waiter(_priority(call), self._turn_of(call), next(self._numbers), call, placed)
        insort(self._waiters.setdefault(key, []), waiter)
        self._count_waiting(call, +1)
        self._turns.setdefault(call.owner, []).append(waiter.turn)
        try:
            async with asyncio.timeout_at(_loop_time(call.deadline_at)):
                return await _taken(placed)
        except TimeoutError:
            raise WaitedTooLongError(
                f"the request's time was over after {time.monotonic() - call.started_at:.1f} s of "
                f"waiting for a variant: allow it more, or send it when less is going on"
            ) from None
        finally:
            self._forget(key, waiter)

    def _at_once(self, call: InferenceCall) -> Lease | None:
        try:
            return self._try_place(call)
        except NotReadyError:
            return None

    def _check_room(self, call: InferenceCall) -> None:
        """Raise QueueFullError for a call that may not wait."""
        if self._waiting.total >= self._max_waiting and not self._has_made_room(call.owner):
            raise QueueFullError(
                f"all variants are busy and {self._max_waiting} requests wait, which is the "
                f"limit (--max-waiting): send the request again later"
            )
        if not call.features.is_guided:
            return
        num_left = max(int(self._max_waiting * GUIDED_SHARE), 1) - self._guided.total()
        if self._guided[call.owner] >= num_left * OWNER_FACTOR:
            raise QueueFullError(
                f"{self._guided[call.owner]} of your requests with guided_decoding wait for their "
                f"grammars to be tried, or for a variant: send the request again later"
            )

    def _has_made_room(self, owner: object) -> bool:
        """Whether the last request of whoever has the most was refused for one of `owner`.

        As FairTable does it, so that nobody can keep the others out.
        """
        most = max(self._owners, key=self._owners.__getitem__, default=owner)
        if self._owners[most] <= self._owners[owner] + 1:
            return False
        lasts = [
            (waiter, key)
            for key, waiters in self._waiters.items()
            if (waiter := next((w for w in reversed(waiters) if _may_go(w, most)), None))
        ]
        if not lasts:
            return False
        waiter, key = max(lasts, key=itemgetter(0))
        waiter.placed.set_exception(
            QueueFullError(
                f"{self._max_waiting} requests wait, which is the limit (--max-waiting), and most "
                f"are yours: send the request again later"
            )
        )
        self._forget(key, waiter)
        return True

    def _turn_of(self, call: InferenceCall) -> int:
        """When it is its turn: after its owner's others, or next.

        As in start-time fair queuing (Goyal, Vin and Cheng, IEEE/ACM Trans. Netw. 5(5), 1997), all
        requests being of one size.
        """
        own = self._turns.get(call.owner)
        return max(own[-1] + 1 if own else 0, self._turn)

    def _count_waiting(self, call: InferenceCall, change: int) -> None:
        self._owners[call.owner] += change
        if not self._owners[call.owner]:
            del self._owners[call.owner]
        if call.features.is_guided:
            self._guided[call.owner] += change
            if not self._guided[call.owner]:
                del self._guided[call.owner]
        self._waiting.add(change)
        self._on_waiting(change)

    def _forget(self, key: QueueKey, waiter: Waiter) -> None:
        waiters = self._waiters.get(key, [])
        at = bisect_left(waiters, waiter)  # all may leave at once, when their connection ends
        if waiters[at : at + 1] == [waiter]:
            del waiters[at]
            self._count_waiting(waiter.call, -1)
            turns = self._turns[waiter.call.owner]
            del turns[bisect_left(turns, waiter.turn)]
            if not turns:
                del self._turns[waiter.call.owner]
        if not waiters:
            self._waiters.pop(key, None)


def _may_go(waiter: Waiter, owner: object) -> bool:
    """Whether a request of `owner` may be refused after all: nothing of its answer was sent."""
    call = waiter.call
    return call.owner == owner and not call.failed_variants and not waiter.placed.done()


async def _taken(placed: "asyncio.Future[Lease]") -> Lease:
    """The lease that was given; whoever leaves in that very moment gives it back."""
    try:
        return await placed
    except asyncio.CancelledError as error:
        if placed.done() and not placed.cancelled() and placed.exception() is None:
            placed.result().close(error)
        raise


def _priority(call: InferenceCall) -> int:
    if call.failed_variants:
        return FAILED_OVER_PRIORITY
    asked = DEFAULT_PRIORITY if call.priority is None else call.priority
    return max(asked, call.caller.highest_priority)


def _loop_time(monotonic: float | None) -> float | None:
    """A time of the monotonic clock in the event loop's."""
    if monotonic is None:
        return None
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
