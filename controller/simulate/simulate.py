"""Run a router's policy over a simulated fleet and report what users and operators would see."""

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from trt_mtp.build.trtllm_config import draft_len_schedule
from trt_mtp.controller.batch_schedule import EXAMPLE_SCHEDULE, BatchSchedule
from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.simulate.arrivals import Arrival, Trace, bursts, poisson
from trt_mtp.controller.simulate.fleet import Fleet, InFlight, Replica, split
from trt_mtp.controller.simulate.world import SimulatedRequest, World, published_cost
from trt_mtp.errors import InputError

POLICIES = ("none", "static", "schedule", "heuristics", "learned", "oracle")
MAX_BATCH_SIZE = 128  # of a replica
SAMPLE = 10_000  # latencies kept for percentiles


@dataclass(frozen=True, slots=True)
class Settings:
    """One simulation; the same seed gives the same requests to every policy."""

    mix: Mapping[str, float]
    policy: str = "learned"
    num_requests: int = 20_000
    num_replicas: int = 20
    shares: Mapping[int, float] = field(default_factory=lambda: {0: 1.0, 1: 1.0, 3: 1.0})
    static_length: int = 3  # of policy `static`: the whole fleet has it
    schedule: Mapping[int, int] = field(default_factory=lambda: EXAMPLE_SCHEDULE)  # of `schedule`
    is_scheduled: bool = False  # the replicas of `shares` follow it too, up to their lengths
    rate_per_s: float = 20.0
    arrivals: str = "poisson"  # or bursts; a trace comes instead of both
    trace: Trace | None = None
    seed: int = 0


class Router:
    """Picks a replica: the least loaded one of the draft length that the policy wants."""

    def __init__(self, settings: Settings, fleet: Fleet, world: World):
        self._settings, self._fleet, self._world = settings, fleet, world
        self.policy = Policy(Profile(), seed=settings.seed)

    def route(self, request: SimulatedRequest, now_s: float) -> tuple[Replica, Decision | None]:
        """The replica for a request, and the decision where a learning policy took one."""
        replicas = [self._fleet.least_loaded(k) for k in self._fleet.draft_lengths]
        if len(replicas) == 1:
            return replicas[0], None
        if self._settings.policy == "oracle":
            return min(replicas, key=lambda r: self._finish_s(request, r)), None
        variants = [
            VariantState(f"k{r.max_draft_length}", r.max_draft_length, True, r.load,
                         r.max_batch_size, 1 << 20, schedule=r.schedule)
            for r in replicas
        ]  # fmt: skip
        decision = self.policy.choose(request.features, variants, now_s=now_s)
        return self._fleet.least_loaded(int(decision.variant.removeprefix("k"))), decision

    def _finish_s(self, request: SimulatedRequest, replica: Replica) -> float:
        """When it would end if the replica's load stayed, knowing the request's acceptance."""
        batch = min(replica.load + 1, replica.max_batch_size)
        seconds = self._world.seconds(request, replica.length_at(batch), batch)
        return seconds * max(1.0, (replica.load + 1) / replica.max_batch_size)

    def learn(self, flight: InFlight, ended_s: float) -> None:
        """Tell the policy how a request went."""
        if flight.decision is not None and self._settings.policy == "learned":
            outcome = self._world.outcome(
                flight.request, flight.draft_length, ended_s - flight.started_s, parts=flight.parts
            )
            decided = flight.decision.draft_length  # a schedule may have had another by its start
            self.policy.update(flight.decision, replace(outcome, draft_length=decided))


class Reservoir:
    """A uniform sample of a stream, in constant memory (Vitter's algorithm R, 1985)."""

    def __init__(self, rng: random.Random):
        self._rng, self.values, self.count = rng, list[float](), 0

    def add(self, value: float) -> None:
        """Take the value in, or leave it."""
        self.count += 1
        if len(self.values) < SAMPLE:
            self.values.append(value)
        elif (slot := self._rng.randrange(self.count)) < SAMPLE:
            self.values[slot] = value

    def percentile(self, share: float) -> float:
        """The value below which `share` of the sample lies."""
        ordered = sorted(self.values)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Result(NamedTuple):
    """What came of one policy."""

    policy: str
    num_requests: int
    simulated_s: float
    tokens_per_s: float  # of the fleet
    user_tokens_per_s: float  # median over requests, waiting included
    latency_p50_s: float
    latency_p99_s: float
    chosen: dict[str, float]  # share of requests by the draft length that they began with

    def to_json(self) -> dict[str, Any]:
        """Rounded, with stable keys."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in self._asdict().items()}


def simulate(settings: Settings) -> Result:
    """Run one policy to the end of its last request."""
    if settings.policy not in POLICIES:
        raise InputError(f"policy {settings.policy!r} is not one of {', '.join(POLICIES)}")
    cost = published_cost()
    lengths = _draft_lengths(settings)
    fleet = Fleet(lengths, cost, MAX_BATCH_SIZE, _schedules(settings, lengths))
    world = World(cost, seed=settings.seed)
    router = Router(settings, fleet, world)
    rng = random.Random(settings.seed + 1)
    latency, speed = Reservoir(rng), Reservoir(rng)
    chosen: Counter[int] = Counter()
    tokens, ended_s = 0, 0.0
    for ended_s, flight in _flights(settings, fleet, world, router):
        router.learn(flight, ended_s)
        tokens += flight.request.num_tokens
        chosen[flight.draft_length] += 1
        latency.add(ended_s - flight.arrived_s)
        speed.add(flight.request.num_tokens / (ended_s - flight.arrived_s))
    return Result(
        settings.policy if settings.policy != "static" else f"static-{settings.static_length}",
        latency.count,
        ended_s,
        tokens / ended_s,
        statistics.median(speed.values),
        latency.percentile(0.5),
        latency.percentile(0.99),
        {str(k): round(n / latency.count, 4) for k, n in sorted(chosen.items())},
    )


def simulate_all(settings: Settings, policies: Sequence[str]) -> Iterator[Result]:
    """One result per policy on the same requests; `static` gives one per hosted length.

    Raises InputError, before the first result, for a fleet too small for its lengths.
    """
    for policy in policies:
        _draft_lengths(replace(settings, policy=policy))
    for policy in policies:
        lengths = sorted(settings.shares) if policy == "static" else [settings.static_length]
        for length in lengths:
            yield simulate(replace(settings, policy=policy, static_length=length))


def _draft_lengths(settings: Settings) -> list[int]:
    if settings.policy == "none":
        return [0] * settings.num_replicas
    if settings.policy == "static":
        return [settings.static_length] * settings.num_replicas
    if settings.policy == "schedule":
        return [max(settings.schedule.values())] * settings.num_replicas
    if settings.num_replicas < len(settings.shares):
        raise InputError(
            f"{settings.num_replicas} replicas can't host {len(settings.shares)} draft lengths"
        )
    return split(settings.num_replicas, settings.shares)


def _schedules(settings: Settings, lengths: Iterable[int]) -> dict[int, BatchSchedule]:
    """The schedule that each hosted length follows; none where it keeps to itself."""
    if settings.policy == "schedule":
        return dict.fromkeys(lengths, BatchSchedule.of(settings.schedule))
    if not settings.is_scheduled or settings.policy in ("none", "static"):
        return {}
    wanted = {
        k: draft_len_schedule(settings.schedule, k, MAX_BATCH_SIZE) for k in set(lengths) - {0}
    }
    return {k: BatchSchedule.of(schedule) for k, schedule in wanted.items() if schedule}


def _flights(
    settings: Settings, fleet: Fleet, world: World, router: Router
) -> Iterator[tuple[float, InFlight]]:
    """Send every request when it arrives; yield each when it ends."""
    for arrival in islice(_arrivals(settings), settings.num_requests):
        now_s = arrival.time_s
        yield from fleet.finished_until(now_s)
        request = world.draw(settings.mix, arrival.task)
        replica, decision = router.route(request, now_s)
        flight = InFlight(request, now_s, replica.draft_length, decision)
        fleet.submit(replica, flight, now_s)
    yield from fleet.finished_until(float("inf"))


def _arrivals(settings: Settings) -> Iterable[Arrival]:
    if settings.trace is not None:
        return settings.trace
    process = bursts if settings.arrivals == "bursts" else poisson
    return process(settings.rate_per_s, random.Random(settings.seed + 2))
