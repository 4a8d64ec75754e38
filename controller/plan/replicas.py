"""Equal replicas in simulated time: simulate/fleet.py without what only a router has to know.

A plan simulates hundreds of thousands of requests. So this keeps plain numbers, and its requests
are drawn before it starts. tests/controller/plan/test_replicas.py compares the two.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.context_cost import LEAST
from trt_mtp.controller.cost import StepCost

Step = tuple[Sequence[float], float, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Requests:
    """What arrives, in order; one entry per request in each list."""

    at: Sequence[float]  # seconds
    reading_s: Sequence[float]  # of the prompt, during which a replica's answers stand still
    steps: Mapping[int, Sequence[float]]  # of the answer, by draft length
    context_tokens: Sequence[float]  # in the cache, on average while it is answered


class Engine:
    """The step times of a replica that has `batch` slots and one draft length or a schedule."""

    def __init__(self, cost: StepCost, draft_length: int, batch: int,
                 schedule: BatchSchedule | None = None) -> None:  # fmt: skip
        self.batch = batch
        loads = range(batch + 1)
        self.lengths = [draft_length if schedule is None else schedule.draft_length(max(b, 1))
                        for b in loads]  # fmt: skip
        self.steps = {k: self._step(cost, k) for k in {*self.lengths}}

    def _step(self, cost: StepCost, draft_length: int) -> Step:
        """T(K, B, C) = max(least[B], base[B] + C * slope), as StepCost has it."""
        context = cost.context
        slope = context.plain_s + draft_length * context.draft_s
        table = [cost.step_s(draft_length, load) for load in range(self.batch + 1)]
        base = [table_s - b * context.at_tokens * slope for b, table_s in enumerate(table)]
        return base, slope, [LEAST * table_s for table_s in table]


class _Replica:
    __slots__ = (
        "context_tokens", "index", "length", "load", "next_at", "now", "reading_s", "running",
        "step_s", "steps", "waiting",
    )  # fmt: skip

    def __init__(self, index: int, length: int) -> None:
        self.index, self.length = index, length
        self.load = 0
        self.next_at = -1.0
        self.now = self.steps = self.step_s = self.reading_s = self.context_tokens = 0.0
        self.running: list[tuple[float, int]] = []  # heap: the step that ends a request, and which
        self.waiting: deque[int] = deque()


class Replicas:
    """All of them and their events."""

    def __init__(self, engine: Engine, count: int, requests: Requests) -> None:
        self._engine, self._requests, self._count = engine, requests, count
        self._replicas = [_Replica(i, engine.lengths[1]) for i in range(count)]
        self._events: list[tuple[float, int]] = []  # time, replica
        self._by_load = list(range(count))  # heap of load * count + replica; old entries are void
        self.first_token_at = [0.0] * len(requests.at)
        self.ended_at = [0.0] * len(requests.at)

    def run(self) -> None:
        """Answer everything, each request by the replica that has the fewest."""
        for request, now in enumerate(self._requests.at):
            self._finish_until(now)
            replica = self._least_loaded()
            self._advance(replica, now)
            replica.waiting.append(request)
            self._admit(replica, 1)
        self._finish_until(float("inf"))

    def _least_loaded(self) -> _Replica:
        while True:
            load, index = divmod(self._by_load[0], self._count)
            replica = self._replicas[index]
            if replica.load == load:
                return replica
            heappop(self._by_load)

    def _finish_until(self, now: float) -> None:
        events, replicas, ended_at = self._events, self._replicas, self.ended_at
        while events and events[0][0] <= now:
            at, index = heappop(events)
            replica = replicas[index]
            if at != replica.next_at:
                continue  # the replica has got or lost a request since
            self._advance(replica, at)
            _, request = heappop(replica.running)
            ended_at[request] = at
            replica.context_tokens -= self._requests.context_tokens[request]
            self._admit(replica, -1)

    def _advance(self, replica: _Replica, now: float) -> None:
        passed_s = now - replica.now
        if replica.reading_s:
            read_s = replica.reading_s if replica.reading_s < passed_s else passed_s
            replica.reading_s -= read_s
            passed_s -= read_s
        if replica.running:
            replica.steps += passed_s / replica.step_s
        replica.now = now

    def _admit(self, replica: _Replica, more: int) -> None:
        """Start what waits and has a slot, and note when the next request ends."""
        engine, requests = self._engine, self._requests
        replica.load += more
        load = replica.load
        length = engine.lengths[load if load < engine.batch else -1]
        if length != replica.length:
            self._redraft(replica, length)
        running, waiting = replica.running, replica.waiting
        while waiting and len(running) < engine.batch:
            request = waiting.popleft()
            replica.context_tokens += requests.context_tokens[request]
            replica.reading_s += requests.reading_s[request]
            self.first_token_at[request] = replica.now + replica.reading_s
            heappush(running, (replica.steps + requests.steps[length][request], request))
        heappush(self._by_load, load * self._count + replica.index)
        if running:
            base, slope, least = engine.steps[length]
            batch = len(running)
            step_s = base[batch] + slope * replica.context_tokens
            if step_s < least[batch]:
                step_s = least[batch]
            replica.step_s = step_s
            left = running[0][0] - replica.steps
            at = replica.now + replica.reading_s + (left * step_s if left > 0 else 0.0)
            replica.next_at = at
            heappush(self._events, (at, replica.index))

    def _redraft(self, replica: _Replica, length: int) -> None:
        """Change the draft length, and recount the steps that requests have left."""
        old, new = self._requests.steps[replica.length], self._requests.steps[length]
        replica.length = length
        replica.running = [
            (replica.steps + (last - replica.steps) * new[request] / old[request], request)
            for last, request in replica.running
        ]
        heapify(replica.running)
