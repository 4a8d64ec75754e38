"""A fleet of replicas in simulated time: continuous batching, a router in front.

A replica runs all its requests together, one step after another, and a step takes T(K, B). So a
request of n steps ends after n more steps of the replica, whatever else starts or ends meanwhile.
That takes one heap of step numbers per replica and two events per request. A replica reads new
prompts, one after the other, before its next step. Under a batch schedule,
K changes with B while requests run: each running request's remaining steps are recounted from its
remaining tokens. Memory grows only with the requests in flight.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.decision import Decision
from trt_mtp.controller.simulate.workload import SimulatedRequest


@dataclass(slots=True)
class InFlight:
    """A request on a replica."""

    request: SimulatedRequest
    arrived_at: float
    draft_length: int  # of its first step
    decision: Decision | None
    started_at: float = 0.0
    began: float = 0.0  # the replica's step at which its present draft length began
    prefill_s: float = 0.0  # of reading its prompt, during which its replica's answers stand still
    first_token_at: float = 0.0  # the end of that
    parts: list[tuple[int, float]] = field(default_factory=list)  # earlier lengths, steps at each


@dataclass(slots=True)
class Replica:
    """One engine, built for `max_draft_length`."""

    index: int
    max_draft_length: int
    draft_length: int  # of the present batch
    max_batch_size: int
    schedule: BatchSchedule | None = None
    now: float = 0.0
    steps: float = 0.0  # so far, with the part of the running one
    step_s: float = 0.0  # of the present batch
    prefill_left_s: float = 0.0  # of the prompts that it still has to read before its next step
    version: int = 0  # of its next event; older events are void
    running: list[tuple[float, int, InFlight]] = field(default_factory=list)  # heap by last step
    waiting: deque[InFlight] = field(default_factory=deque)

    @property
    def load(self) -> int:
        """Running and waiting requests."""
        return len(self.running) + len(self.waiting)

    def length_at(self, load: int) -> int:
        """Its draft length with this many requests on it."""
        if self.schedule is None:
            return self.max_draft_length
        return self.schedule.draft_length(min(load, self.max_batch_size))


class Group:
    """The replicas of one draft length, in a heap by load."""

    def __init__(self, replicas: Sequence[Replica]):
        self._replicas = replicas
        self._heap = [(0, replica.index, replica) for replica in replicas]

    def changed(self, replica: Replica) -> None:
        """Note a changed load; `least_loaded` drops old entries when it meets them."""
        heapq.heappush(self._heap, (replica.load, replica.index, replica))
        if len(self._heap) > 8 * len(self._replicas):
            self._heap = [(r.load, r.index, r) for r in self._replicas]
            heapq.heapify(self._heap)

    def least_loaded(self) -> Replica:
        """The replica with the fewest requests."""
        while self._heap[0][0] != self._heap[0][2].load:
            heapq.heappop(self._heap)
        return self._heap[0][2]


class Fleet:
    """All replicas and their events.

    A replica follows the schedule of its draft length in `schedules`, or keeps to its length.
    """

    def __init__(
        self, draft_lengths: Sequence[int], cost: StepCost, max_batch_size: int = 128,
        schedules: Mapping[int, BatchSchedule] = MappingProxyType({}),
    ):  # fmt: skip
        self._cost = cost
        self.replicas = [
            Replica(i, k, k, max_batch_size, schedules.get(k)) for i, k in enumerate(draft_lengths)
        ]
        by_length: dict[int, list[Replica]] = defaultdict(list)
        for replica in self.replicas:
            by_length[replica.max_draft_length].append(replica)
        self._groups = {k: Group(replicas) for k, replicas in sorted(by_length.items())}
        self._events: list[tuple[float, int, int]] = []  # time, replica, version
        self._serial = 0

    @property
    def draft_lengths(self) -> list[int]:
        """The hosted lengths, ascending."""
        return list(self._groups)

    def least_loaded(self, draft_length: int) -> Replica:
        """The replica of this length with the fewest requests."""
        return self._groups[draft_length].least_loaded()

    def submit(self, replica: Replica, flight: InFlight, now: float) -> None:
        """Start a request, or queue it if the batch is full."""
        self._advance(replica, now)
        replica.waiting.append(flight)
        self._admit(replica)
        self._schedule(replica)

    def finished_until(self, now: float) -> Iterator[tuple[float, InFlight]]:
        """The requests that end up to `now`, in order."""
        while self._events and self._events[0][0] <= now:
            ended_at, index, version = heapq.heappop(self._events)
            replica = self.replicas[index]
            if version != replica.version:
                continue
            self._advance(replica, ended_at)
            _, _, flight = heapq.heappop(replica.running)
            if flight.parts:
                _part(flight, replica)
            self._admit(replica)
            self._schedule(replica)
            yield ended_at, flight

    def _advance(self, replica: Replica, now: float) -> None:
        read_s = min(now - replica.now, replica.prefill_left_s)
        replica.prefill_left_s -= read_s
        if replica.running:
            replica.steps += (now - replica.now - read_s) / replica.step_s
        replica.now = now

    def _admit(self, replica: Replica) -> None:
        _redraft(replica, replica.length_at(replica.load))
        while replica.waiting and len(replica.running) < replica.max_batch_size:
            flight = replica.waiting.popleft()
            flight.started_at, flight.draft_length = replica.now, replica.draft_length
            flight.began = replica.steps
            replica.prefill_left_s += flight.prefill_s
            flight.first_token_at = replica.now + replica.prefill_left_s
            self._serial += 1
            steps = flight.request.num_tokens / flight.request.lengths[replica.draft_length]
            heapq.heappush(replica.running, (replica.steps + steps, self._serial, flight))

    def _schedule(self, replica: Replica) -> None:
        self._groups[replica.max_draft_length].changed(replica)
        replica.version += 1
        if not replica.running:
            return
        replica.step_s = self._cost.step_s(replica.draft_length, len(replica.running))
        left = max(replica.running[0][0] - replica.steps, 0.0)
        due = replica.now + replica.prefill_left_s + left * replica.step_s
        heapq.heappush(self._events, (due, replica.index, replica.version))


def _part(flight: InFlight, replica: Replica) -> None:
    """Note the steps that a request ran at the replica's present draft length."""
    flight.parts.append((replica.draft_length, replica.steps - flight.began))
    flight.began = replica.steps


def _redraft(replica: Replica, draft_length: int) -> None:
    """Change the draft length of running requests, and recount their remaining steps.

    Requests gain differently from a length, so the order in which they end may change.
    """
    if draft_length == replica.draft_length:
        return
    now, old = replica.steps, replica.draft_length
    for _, _, flight in replica.running:
        _part(flight, replica)
    replica.draft_length = draft_length
    replica.running = [
        (
            now + (last - now) * flight.request.lengths[old] / flight.request.lengths[draft_length],
            serial,
            flight,
        )
        for last, serial, flight in replica.running
    ]
    heapq.heapify(replica.running)


def split(num_replicas: int, shares: Mapping[int, float]) -> list[int]:
    """Draft lengths of a fleet; each length with a share gets at least one replica.

    >>> split(4, {0: 0.25, 3: 0.75})
    [0, 3, 3, 3]
    """
    total = sum(shares.values())
    counts = {k: max(1, int(num_replicas * share / total)) for k, share in shares.items()}
    largest = max(counts, key=lambda k: counts[k])
    counts[largest] += num_replicas - sum(counts.values())
    return [k for k, count in sorted(counts.items()) for _ in range(count)]
