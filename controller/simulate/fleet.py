"""A fleet of replicas in simulated time: continuous batching, a router in front.

A replica runs all its requests together, one step after another, and a step takes T(K, B). So a
request of n steps ends after n more steps of the replica, whatever else starts or ends meanwhile.
That takes one heap of step numbers per replica and two events per request. Under a batch schedule,
K changes with B while requests run: each running request's remaining steps are recounted from its
remaining tokens. Memory grows only with the requests in flight.

A replica reads new prompts, one after the other: all of one before its next step, or in chunks that
fill up each step to CHUNK tokens. Such a step reads the weights once for both, so that it takes as
long as the longer of the two, T(0, B) or a chunk, and what drafting adds to T. Then a request also
waits for the end of the running step. benchmarks/prefill.py compares that with an engine which is
simulated step by step.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.decision import Decision
from trt_mtp.controller.outcome import MeanLoad
from trt_mtp.controller.simulate.workload import SimulatedRequest

CHUNK = 2048  # tokens of a step that reads prompts
DRAFTS_SHARE = 0.5  # of what drafting adds to a step: the drafts, which no chunk hides
LEAST_CHUNK = 0.1  # of them that prompts get beside however many drafts


class Passed(NamedTuple):
    """Requests and tokens in flight on a replica, summed over time."""

    at: float = 0.0
    request_s: float = 0.0
    token_s: float = 0.0


NOTHING = Passed()


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
    context_tokens: float = 0.0  # in its cache
    passed: Passed = NOTHING  # when it started
    mean_load: MeanLoad | None = None  # while it ran
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
    unread: deque[InFlight] = field(default_factory=deque)  # whose prompts are read in chunks
    reading: float = 0.0  # seconds of prefill that are read per second
    context_tokens: float = 0.0  # of all that it has
    passed: Passed = NOTHING
    version: int = 0  # of its next event; older events are void
    running: list[tuple[float, int, InFlight]] = field(default_factory=list)  # heap by last step
    waiting: deque[InFlight] = field(default_factory=deque)

    @property
    def load(self) -> int:
        """Running and waiting requests."""
        return len(self.running) + len(self.unread) + len(self.waiting)

    @property
    def num_admitted(self) -> int:
        """Requests that have a slot."""
        return len(self.running) + len(self.unread)

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

    A replica follows the schedule of its draft length in `schedules`, or keeps to its length. With
    `chunk_s`, the seconds of a chunk, it reads prompts in chunks.
    """

    def __init__(
        self, draft_lengths: Sequence[int], cost: StepCost, max_batch_size: int = 128,
        schedules: Mapping[int, BatchSchedule] = MappingProxyType({}),
        chunk_s: float | None = None,
    ):  # fmt: skip
        self._cost, self._chunk_s = cost, chunk_s
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
            flight = self._ended(replica)
            self._admit(replica)
            self._schedule(replica)
            if flight is not None:
                yield ended_at, flight

    def _ended(self, replica: Replica) -> InFlight | None:
        """The request that an event ends; None if it is a prompt that was read to its end."""
        if replica.unread and replica.unread[0].prefill_s <= 1e-9:
            self._run(replica, replica.unread.popleft())
            return None
        _, _, flight = heapq.heappop(replica.running)
        if flight.parts:
            _part(flight, replica)
        replica.context_tokens -= flight.context_tokens
        flight.mean_load = _mean(flight.passed, replica.passed)
        return flight

    def _advance(self, replica: Replica, now: float) -> None:
        passed_s = now - replica.now
        _, request_s, token_s = replica.passed
        replica.passed = Passed(
            now,
            request_s + passed_s * replica.num_admitted,
            token_s + passed_s * replica.context_tokens,
        )
        read_s = min(passed_s, replica.prefill_left_s)
        replica.prefill_left_s -= read_s
        if replica.unread:
            replica.unread[0].prefill_s -= passed_s * replica.reading
        if replica.running:
            replica.steps += (passed_s - read_s) / replica.step_s
        replica.now = now

    def _admit(self, replica: Replica) -> None:
        _redraft(replica, replica.length_at(replica.load))
        while replica.waiting and replica.num_admitted < replica.max_batch_size:
            flight = replica.waiting.popleft()
            flight.started_at, flight.passed = replica.now, replica.passed
            flight.context_tokens = self._context_tokens(flight.request)
            replica.context_tokens += flight.context_tokens
            if self._chunk_s and flight.prefill_s:
                replica.unread.append(flight)
                continue
            replica.prefill_left_s += flight.prefill_s
            self._run(replica, flight)

    def _run(self, replica: Replica, flight: InFlight) -> None:
        """Take a request among those that are answered."""
        flight.draft_length, flight.began = replica.draft_length, replica.steps
        flight.first_token_at = replica.now + replica.prefill_left_s
        self._serial += 1
        steps = flight.request.num_tokens / flight.request.lengths[replica.draft_length]
        if self._chunk_s:
            if not replica.running:
                replica.steps = math.ceil(replica.steps)
            steps += math.ceil(replica.steps - 1e-6) - replica.steps
        heapq.heappush(replica.running, (replica.steps + steps, self._serial, flight))

    def _context_tokens(self, request: SimulatedRequest) -> float:
        if request.prompt_tokens is None:
            return self._cost.context.at_tokens
        return request.prompt_tokens + request.num_tokens / 2

    def _schedule(self, replica: Replica) -> None:
        self._groups[replica.max_draft_length].changed(replica)
        replica.version += 1
        if not replica.num_admitted:
            return
        batch, left_s = len(replica.running), math.inf
        replica.step_s = self._cost.step_s(replica.draft_length, batch, replica.context_tokens)
        if replica.unread:
            left_s = self._read_on(replica)
        if replica.running:
            left = max(replica.running[0][0] - replica.steps, 0.0)
            left_s = min(left_s, replica.prefill_left_s + left * replica.step_s)
        heapq.heappush(self._events, (replica.now + left_s, replica.index, replica.version))

    def _read_on(self, replica: Replica) -> float:
        """Fill up steps with chunks of prompts; the seconds until the first of those is read."""
        assert self._chunk_s is not None
        batch, length = len(replica.running), replica.draft_length
        chunk_s = self._chunk_s * max(1 - batch * (length + 1) / CHUNK, LEAST_CHUNK)
        plain_s = self._cost.step_s(0, batch, replica.context_tokens) if batch else 0.0
        drafting_s = DRAFTS_SHARE * (replica.step_s - plain_s) if batch else 0.0
        replica.step_s = max(plain_s, self._chunk_s) + drafting_s
        replica.reading = chunk_s / replica.step_s
        return max(replica.unread[0].prefill_s, 0.0) / replica.reading


def _mean(begun: Passed, ended: Passed) -> MeanLoad | None:
    """What was in flight on average between two times."""
    seconds = ended.at - begun.at
    if seconds <= 0:
        return None
    return MeanLoad(
        max((ended.request_s - begun.request_s) / seconds, 1.0),
        max((ended.token_s - begun.token_s) / seconds, 0.0),
    )


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
