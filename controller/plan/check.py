"""A planned fleet in the simulator: the latencies that users would see."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.modes import Mode
from trt_mtp.controller.plan.replicas import Engine, Replicas, Requests
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.controller.simulate.workload import SPREAD

NUM_REQUESTS = 8000  # of a group of replicas
WARM_UP = 0.15  # of them, until the fleet has filled
TURNOVERS = 12  # requests for each slot; of larger groups a part is simulated with its traffic
JUDGED = 400  # answers of a task from which on its own percentile is judged
LENGTH_SPREAD = 0.8  # log SD of lengths, as that of the answers in simulate/workload.py
MORE = 1.645  # deviations: the upper end is above the truth in 95 of 100 samples
LESS = 2.576  # the lower end is below it in 995, as the highest of many tasks is looked at
RARE = 20  # requests that each task has in the sample, however seldom it comes


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


class Range(NamedTuple):
    """What the highest 99th percentile over tasks is, and what it may be at least and at most."""

    seen: float
    low: float
    high: float


def spread(values: Any) -> Spread:
    """The percentiles of an array that isn't empty."""
    return Spread(*(float(value) for value in np.percentile(values, (50, 99))))


def worst(by_task: Mapping[str, Any]) -> Range:
    """The highest 99th percentile over tasks; those with few answers count together."""
    judged = [values for values in by_task.values() if len(values) >= JUDGED]
    rare = [values for values in by_task.values() if len(values) < JUDGED]
    together = [np.concatenate(rare)] if rare else []
    ranges = [_p99(values) for values in [*judged, *together]]
    return Range(*(max(ends) for ends in zip(*ranges, strict=True)))


def _p99(values: Any) -> Range:
    """The 99th percentile and the order statistics that enclose it (LESS and MORE)."""
    n = len(values)
    deviation = (0.99 * 0.01 * n) ** 0.5
    ranks = [int(0.99 * n + z * deviation) for z in (0.0, -LESS, MORE)]
    ranks = [min(max(rank, 0), n - 1) for rank in ranks]
    ordered = np.partition(values, ranks)
    return Range(*(float(ordered[rank]) for rank in ranks))


def simulate(
    deployment: Deployment, traffic: Traffic, mode: Mode, count: int, flow: Mapping[str, float],
    seed: int = 0, num_requests: int = NUM_REQUESTS,
) -> Latencies:  # fmt: skip
    """One group of replicas under its share of the traffic; `flow` is requests per second by task.

    A request goes to the least loaded replica. A group that is too large for the sample stands in
    smaller, which is the worse case: fewer replicas even out less.
    """
    part = max(1, min(count, NUM_REQUESTS // (TURNOVERS * mode.batch)))
    schedule = None if mode.schedule is None else BatchSchedule(mode.schedule)
    engine = Engine(deployment.cost, mode.draft_length, mode.batch, schedule)
    rate = sum(flow.values()) * part / count
    drawn = _arrivals(deployment, traffic, flow, rate, seed, num_requests)
    requests = drawn.requests({*engine.lengths})
    replicas = Replicas(engine, part, requests)
    replicas.run()
    return _latencies(drawn, np.array(replicas.first_token_at), np.array(replicas.ended_at))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Requests in the order in which they arrive, as arrays of one entry per request."""

    tasks: Sequence[str]
    task: Any  # index in `tasks`
    at: Any
    prompt_tokens: Any
    tokens: Any  # after the first, which the prompt's pass brings
    survival: Any  # [request, draft]: the chance that this many drafts are accepted
    reading_s: Any

    def requests(self, lengths: Iterable[int]) -> Requests:
        """As replicas of these draft lengths take them."""
        steps = {k: self.tokens / (1 + self.survival[:, :k].sum(axis=1)) for k in lengths}
        return Requests(
            self.at.tolist(),
            self.reading_s.tolist(),
            {k: values.tolist() for k, values in steps.items()},
            (self.prompt_tokens + self.tokens / 2).tolist(),
        )


def _arrivals(
    deployment: Deployment, traffic: Traffic, flow: Mapping[str, float], rate: float, seed: int,
    num_requests: int,
) -> _Drawn:  # fmt: skip
    """Poisson arrivals of the flow's tasks.

    Acceptance is spread as in simulate/workload.py; lengths are those seen, or log-normal.
    """
    rng, tasks = np.random.default_rng(seed), list(flow)
    task = _tasks(np.array([flow[name] for name in tasks]), num_requests, rng)
    at = rng.exponential(1 / rate, num_requests).cumsum()
    prompts, outputs = np.empty(num_requests), np.empty(num_requests)
    conditionals = np.empty((num_requests, MAX_POSITIONS))
    for i, name in enumerate(tasks):
        own = np.flatnonzero(task == i)
        prompts[own], outputs[own] = _lengths(traffic[name], len(own), rng)
        mean = np.array(deployment.conditionals[name])
        conditionals[own] = _conditionals(mean, name, len(own), rng)
    tokens = np.maximum(outputs.astype(int) - 1, 1)
    reading_s = prompts / deployment.prefill_tokens_per_s
    return _Drawn(tasks, task, at, prompts, tokens, conditionals.cumprod(axis=1), reading_s)


def _tasks(shares: Any, num_requests: int, rng: np.random.Generator) -> Any:
    """The task of each request, by its share; RARE of each at least."""
    num_tasks = len(shares)
    drawn = rng.choice(num_tasks, num_requests, p=shares / shares.sum())
    places = rng.permutation(num_requests)[: RARE * num_tasks].reshape(num_tasks, RARE)
    for i in range(num_tasks):
        if (drawn == i).sum() < RARE:
            drawn[places[i]] = i
    return drawn


def _latencies(drawn: _Drawn, first_token_at: Any, ended_at: Any) -> Latencies:
    """What was seen after the warm-up."""
    begin = int(WARM_UP * len(drawn.at))
    ttft_ms = 1000 * (first_token_at - drawn.at)[begin:]
    tpot_ms = 1000 * ((ended_at - first_token_at) / drawn.tokens)[begin:]
    task = drawn.task[begin:]
    by_task = {name: task == i for i, name in enumerate(drawn.tasks) if (task == i).any()}
    return Latencies(*(
        {name: values[own] for name, own in by_task.items()} for values in (tpot_ms, ttft_ms)
    ))  # fmt: skip


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
