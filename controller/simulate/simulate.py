"""Run a policy over a simulated fleet and report what users and operators would see."""

import math
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
from trt_mtp.controller.simulate.fleet import CHUNK, Fleet, InFlight, Replica, split
from trt_mtp.controller.simulate.workload import SimulatedRequest, Workload, published_cost
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.files import nearest

POLICIES = ("none", "static", "schedule", "heuristics", "learned", "oracle")
MAX_BATCH_SIZE = 128  # of a replica
PREFILL_TOKENS_PER_S = Profile().prefill_tokens_per_s
SAMPLE = 10_000  # latencies kept for percentiles
EXAMPLE_SHARES = {"mix": {"coding": 0.7, "writing": 0.3}, "fleet": {0: 1, 3: 2}}


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
    prompt_tokens: float = 0.0  # of a request, on average; 0: prompts are left out
    arrivals: str = "poisson"  # or bursts; a trace replaces both
    trace: Trace | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a value that no simulation can have."""
        for task in self.mix:
            if task not in TASKS:
                raise InputError(f"mix: {task!r} is not a task{nearest(str(task), TASKS)}")
        shares = {"mix": self.mix.values(), "fleet": self.shares.values()}
        for name, values in shares.items():
            if not values or not all(0 < value < math.inf for value in values):
                raise InputError(f"{name}: expected shares above 0, such as {EXAMPLE_SHARES[name]}")
        counts = {"num_requests": self.num_requests, "num_replicas": self.num_replicas}
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} is {count}: expected at least 1")
        if not 0 < self.rate_per_s < math.inf:
            raise InputError(f"rate_per_s is {self.rate_per_s:g}: expected requests per second")


class Router:
    """Picks the least loaded replica of the draft length that the policy chooses."""

    def __init__(self, settings: Settings, fleet: Fleet, workload: Workload):
        self._settings, self._fleet, self._workload = settings, fleet, workload
        self.policy = Policy(Profile(), seed=settings.seed)

    def route(self, request: SimulatedRequest, now: float) -> tuple[Replica, Decision | None]:
        """The replica for a request, with the decision if a policy made one."""
        replicas = [self._fleet.least_loaded(k) for k in self._fleet.draft_lengths]
        if len(replicas) == 1:
            return replicas[0], None
        if self._settings.policy == "oracle":
            return min(replicas, key=lambda r: self._finish_s(request, r)), None
        variants = [
            VariantState(f"k{r.max_draft_length}", r.max_draft_length, True, r.load,
                         r.max_batch_size, 1 << 20, schedule=r.schedule,
                         context_tokens=r.context_tokens)
            for r in replicas
        ]  # fmt: skip
        decision = self.policy.choose(request.features, variants, now_s=now)
        return self._fleet.least_loaded(int(decision.variant.removeprefix("k"))), decision

    def _finish_s(self, request: SimulatedRequest, replica: Replica) -> float:
        """Seconds until it would end at the replica's load, by the request's true acceptance."""
        batch = min(replica.load + 1, replica.max_batch_size)
        seconds = self._workload.seconds(request, replica.length_at(batch), batch)
        return seconds * max(1.0, (replica.load + 1) / replica.max_batch_size)

    def learn(self, flight: InFlight, ended_at: float) -> None:
        """Tell the policy the outcome of a request."""
        if flight.decision is not None and self._settings.policy == "learned":
            outcome = self._workload.outcome(
                flight.request,
                flight.draft_length,
                ended_at - flight.started_at,
                parts=flight.parts,
                ttft_s=flight.first_token_at - flight.started_at,
                mean_load=flight.mean_load,
            )
            decided = flight.decision.draft_length  # a schedule may have had another by its start
            self.policy.update(flight.decision, replace(outcome, draft_length=decided))


class Reservoir:
    """A uniform sample of a stream, in constant memory (Vitter's algorithm R, 1985)."""

    def __init__(self, rng: random.Random):
        self._rng, self.values, self.count = rng, list[float](), 0

    def add(self, value: float) -> None:
        """Add a value to the sample, or drop it."""
        self.count += 1
        if len(self.values) < SAMPLE:
            self.values.append(value)
        elif (slot := self._rng.randrange(self.count)) < SAMPLE:
            self.values[slot] = value

    def percentile(self, share: float) -> float:
        """The quantile of the sample at `share`, 0 to 1."""
        ordered = sorted(self.values)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Result(NamedTuple):
    """The results of one policy."""

    policy: str
    num_requests: int
    simulated_s: float
    tokens_per_s: float  # of the fleet
    user_tokens_per_s: float  # median over requests, including their wait
    latency_p50_s: float
    latency_p99_s: float
    chosen: dict[str, float]  # share of requests by their first draft length

    def to_json(self) -> dict[str, Any]:
        """The results, rounded, with stable keys."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in self._asdict().items()}


def simulate(settings: Settings) -> Result:
    """Run one policy to the end of its last request."""
    if settings.policy not in POLICIES:
        raise InputError(f"policy {settings.policy!r} is not one of {', '.join(POLICIES)}")
    cost = published_cost()
    lengths = _draft_lengths(settings)
    chunk_s = CHUNK / PREFILL_TOKENS_PER_S if settings.prompt_tokens else None
    fleet = Fleet(lengths, cost, MAX_BATCH_SIZE, _schedules(settings, lengths), chunk_s)
    workload = Workload(cost, seed=settings.seed, mean_prompt_tokens=settings.prompt_tokens)
    router = Router(settings, fleet, workload)
    rng = random.Random(settings.seed + 1)
    latency, speed = Reservoir(rng), Reservoir(rng)
    chosen: Counter[int] = Counter()
    tokens, ended_at = 0, 0.0
    for ended_at, flight in _flights(settings, fleet, workload, router):
        router.learn(flight, ended_at)
        tokens += flight.request.num_tokens
        chosen[flight.draft_length] += 1
        latency.add(ended_at - flight.arrived_at)
        speed.add(flight.request.num_tokens / (ended_at - flight.arrived_at))
    return Result(
        settings.policy if settings.policy != "static" else f"static-{settings.static_length}",
        latency.count,
        ended_at,
        tokens / ended_at,
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
    """The schedule of each hosted length; lengths without one stay constant."""
    if settings.policy == "schedule":
        return dict.fromkeys(lengths, BatchSchedule.of(settings.schedule))
    if not settings.is_scheduled or settings.policy in ("none", "static"):
        return {}
    wanted = {
        k: draft_len_schedule(settings.schedule, k, MAX_BATCH_SIZE) for k in set(lengths) - {0}
    }
    return {k: BatchSchedule.of(schedule) for k, schedule in wanted.items() if schedule}


def _flights(
    settings: Settings, fleet: Fleet, workload: Workload, router: Router
) -> Iterator[tuple[float, InFlight]]:
    """Send every request when it arrives; yield each when it ends."""
    for arrival in islice(_arrivals(settings), settings.num_requests):
        now = arrival.at
        yield from fleet.finished_until(now)
        request = workload.draw(settings.mix, arrival.task)
        replica, decision = router.route(request, now)
        prefill_s = (request.prompt_tokens or 0) / PREFILL_TOKENS_PER_S
        flight = InFlight(request, now, replica.draft_length, decision, prefill_s=prefill_s)
        fleet.submit(replica, flight, now)
    yield from fleet.finished_until(float("inf"))


def _arrivals(settings: Settings) -> Iterable[Arrival]:
    if settings.trace is not None:
        return settings.trace
    process = bursts if settings.arrivals == "bursts" else poisson
    return process(settings.rate_per_s, random.Random(settings.seed + 2))
