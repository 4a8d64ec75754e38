"""A planned fleet in the simulator: the latencies that users would see."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.modes import Mode
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.simulate.fleet import Fleet, InFlight
from trt_mtp.controller.simulate.workload import SPREAD, SimulatedRequest

NUM_REQUESTS = 8000  # of a group of replicas
WARM_UP = 0.15  # of them, until the fleet has filled
TURNOVERS = 12  # requests for each slot; of larger groups a part is simulated with its traffic
JUDGED = 400  # answers of a task from which on its own percentile is judged
LENGTH_SPREAD = 0.8  # log SD of lengths, as that of the answers in simulate/workload.py
RARE = 20  # requests that each task has in the sample, however seldom it comes
_BLANK = RequestFeatures(temperature=0.7, max_tokens=1024)


class Spread(NamedTuple):
    """The median and the 99th percentile of a latency, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """What simulated requests saw, in milliseconds: TPOT and TTFT by task."""

    tpot_ms: Mapping[str, Any]  # arrays
    ttft_ms: Mapping[str, Any]

    def spreads(self) -> dict[str, tuple[Spread, Spread]]:
        """TPOT and TTFT of each task."""
        return {t: (spread(self.tpot_ms[t]), spread(self.ttft_ms[t])) for t in self.tpot_ms}

    def worst(self) -> tuple[float, float]:
        """The highest 99th percentile of TPOT and of TTFT over tasks, at its upper end.

        Tasks with few answers count together.
        """
        return _worst(self.tpot_ms), _worst(self.ttft_ms)


def spread(values: Any) -> Spread:
    """The percentiles of an array that isn't empty."""
    return Spread(*(float(value) for value in np.percentile(values, (50, 99))))


def _worst(by_task: Mapping[str, Any]) -> float:
    judged = [values for values in by_task.values() if len(values) >= JUDGED]
    rare = [values for values in by_task.values() if len(values) < JUDGED]
    together = [np.concatenate(rare)] if rare else []
    return max(_upper_p99(values) for values in [*judged, *together])


def _upper_p99(values: Any) -> float:
    """The order statistic that is above the true 99th percentile in 95 of 100 samples."""
    n = len(values)
    rank = min(int(0.99 * n + 1.645 * (0.99 * 0.01 * n) ** 0.5), n - 1)
    return float(np.partition(values, rank)[rank])


def simulate(
    deployment: Deployment, traffic: Traffic, mode: Mode, count: int, flow: Mapping[str, float],
    seed: int = 0,
) -> Latencies:  # fmt: skip
    """One group of replicas under its share of the traffic; `flow` is requests per second by task.

    A request goes to the least loaded replica. A group that is too large for the sample stands in
    smaller, which is the worse case: fewer replicas even out less.
    """
    part = max(1, min(count, NUM_REQUESTS // (TURNOVERS * mode.batch)))
    schedules = {}
    if mode.schedule is not None:
        schedules[mode.draft_length] = BatchSchedule(mode.schedule)
    fleet = Fleet([mode.draft_length] * part, deployment.cost, mode.batch, schedules)
    rate = sum(flow.values()) * part / count
    ended: list[tuple[float, InFlight]] = []
    for now, request, prefill_s in _arrivals(deployment, traffic, flow, rate, seed):
        ended += fleet.finished_until(now)
        flight = InFlight(request, now, 0, None, prefill_s=prefill_s)
        fleet.submit(fleet.least_loaded(mode.draft_length), flight, now)
    ended += fleet.finished_until(np.inf)
    begin = sorted(flight.arrived_at for _, flight in ended)[int(WARM_UP * len(ended))]
    return _latencies([(at, flight) for at, flight in ended if flight.arrived_at >= begin])


def _arrivals(
    deployment: Deployment, traffic: Traffic, flow: Mapping[str, float], rate: float, seed: int
) -> Iterator[tuple[float, SimulatedRequest, float]]:
    """Poisson arrivals of the flow's tasks: time, request, seconds of its prefill."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    tasks = list(flow)
    shares = np.array([flow[task] for task in tasks])
    drawn = rng.choice(len(tasks), NUM_REQUESTS, p=shares / shares.sum())
    places = rng.permutation(NUM_REQUESTS)[: RARE * len(tasks)].reshape(len(tasks), RARE)
    for i in range(len(tasks)):
        if (drawn == i).sum() < RARE:
            drawn[places[i]] = i
    requests = [
        draw(deployment, task, traffic[task], int((drawn == i).sum()), rng)
        for i, task in enumerate(tasks)
    ]
    now = 0.0
    for index in drawn:
        now += chance.expovariate(rate)
        yield now, *next(requests[index])


def _latencies(ended: Sequence[tuple[float, InFlight]]) -> Latencies:
    tpot: dict[str, list[float]] = defaultdict(list)
    ttft: dict[str, list[float]] = defaultdict(list)
    for ended_at, flight in ended:
        task, tokens = flight.request.task, flight.request.num_tokens
        ttft[task].append(1000 * (flight.first_token_at - flight.arrived_at))
        tpot[task].append(1000 * (ended_at - flight.first_token_at) / tokens)
    return Latencies(*({t: np.array(v) for t, v in one.items()} for one in (tpot, ttft)))


def draw(
    deployment: Deployment, task: str, one: TaskTraffic, count: int, rng: np.random.Generator
) -> Iterator[tuple[SimulatedRequest, float]]:
    """Requests of a task with the seconds of their prefill.

    Acceptance is spread as in simulate/workload.py; lengths are those seen, or log-normal. Tokens
    are those after the first, which the prompt's pass brings.
    """
    prompts, outputs = _lengths(one, count, rng)
    conditionals = _conditionals(np.array(deployment.conditionals[task]), task, count, rng)
    survival = np.cumprod(conditionals, axis=1)
    lengths = np.concatenate([np.ones((count, 1)), 1 + np.cumsum(survival, axis=1)], axis=1)
    seconds = prompts / deployment.prefill_tokens_per_s
    for i in range(count):
        tokens = max(int(outputs[i]) - 1, 1)
        request = SimulatedRequest(task, tokens, (), tuple(lengths[i]), _BLANK)
        yield request, float(seconds[i])


def _lengths(one: TaskTraffic, count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    if one.seen:
        seen = np.array(one.seen)[rng.integers(len(one.seen), size=count)]
        return seen[:, 0], seen[:, 1]
    center, width = -(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD
    factors = rng.lognormal(center, width, (2, count))
    return np.maximum(one.prompt_tokens * factors[0], 1), np.maximum(
        one.output_tokens * factors[1], 2
    )


def slow_prompt(one: TaskTraffic) -> float:
    """Tokens of the prompt that only one in a hundred of a task is longer than."""
    if one.seen:
        return float(np.percentile([prompt for prompt, _ in one.seen], 99))
    normal_p99 = 2.326
    return one.prompt_tokens * math.exp(normal_p99 * LENGTH_SPREAD - LENGTH_SPREAD**2 / 2)


def _conditionals(mean: Any, task: str, count: int, rng: np.random.Generator) -> Any:
    """c_1 … c_8 of `count` requests: all positions move with the first one, in logits."""
    first = min(max(float(mean[0]), 0.02), 0.99)
    strength = max(first * (1 - first) / SPREAD[task] ** 2 - 1, 2.0)
    drawn = rng.beta(first * strength, (1 - first) * strength, count).clip(0.02, 0.995)
    shift = np.log(drawn / (1 - drawn)) - np.log(first / (1 - first))
    mean = mean.clip(1e-4, 1 - 1e-4)
    logits = np.log(mean / (1 - mean))[None, :] + shift[:, None]
    return 1 / (1 + np.exp(-logits))
