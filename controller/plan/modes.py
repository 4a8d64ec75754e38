"""The ways to run a replica: a draft length, or a schedule of them, held at a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.measured_schedule import best_schedule
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic
from trt_mtp.controller.simulate.workload import SPREAD

TAIL = 0.01  # of the requests that may miss a target: it is a 99th percentile
Schedule = tuple[tuple[int, int], ...]  # (largest batch, draft length), ascending
SlowLengths = Mapping[str, Sequence[float]]  # AL(K) of each task's slowest request in a hundred


@dataclass(frozen=True, slots=True)
class Targets:
    """What 99 of 100 requests of each task get; None where nothing is asked."""

    tpot_ms: float | None = None
    ttft_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """A replica at draft length `draft_length` with at most `batch` requests at a time.

    `busy_s` has the seconds of a full replica's time that a request takes, of the tasks whose
    target holds there, and `slow_tpot_s` the TPOT that only one in a hundred of them exceeds.
    """

    draft_length: int  # with a schedule, the longest one: what the replica is built for
    batch: int
    busy_s: Mapping[str, float]
    schedule: Schedule | None = None
    slow_tpot_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`K = 3`, or the lengths of the schedule."""
        if self.schedule is None:
            return f"K = {self.draft_length}"
        parts = [f"{length} up to {bound}" for bound, length in self.schedule]
        return f"schedule {', '.join(parts)}"


def low_acceptance(deployment: Deployment, task: str) -> tuple[float, ...]:
    """AL(0) … AL(8) of the request that only one in a hundred of its task is worse than.

    First-draft acceptance is spread as a Beta distribution (SPREAD of simulate/workload.py).
    """
    from scipy.special import betaincinv

    own = deployment.conditionals[task]
    mean, spread = min(max(own[0], 0.02), 0.99), SPREAD[task]
    strength = max(mean * (1 - mean) / spread**2 - 1, 2.0)
    low = float(betaincinv(mean * strength, (1 - mean) * strength, TAIL))
    factor = low / mean
    return acceptance_lengths(tuple(factor * c for c in own))


def prefill_s(deployment: Deployment, task: TaskTraffic) -> float:
    """Seconds that reading a prompt of the mean length takes."""
    return task.prompt_tokens / deployment.prefill_tokens_per_s


def all_modes(deployment: Deployment, traffic: Traffic, targets: Targets) -> list[Mode]:
    """Every draft length at every batch that fits, with the tasks whose TPOT target holds there."""
    slow = slow_lengths(deployment, traffic)
    return [
        mode
        for length, batches in sorted(deployment.batches.items())
        for batch in batches
        if (mode := make_mode(deployment, traffic, targets, length, batch, slow)).busy_s
    ]


def slow_lengths(deployment: Deployment, traffic: Traffic) -> SlowLengths:
    """By task."""
    return {task: low_acceptance(deployment, task) for task in traffic}


def make_mode(
    deployment: Deployment, traffic: Traffic, targets: Targets, length: int, batch: int,
    slow: SlowLengths, schedule: Schedule | None = None,
) -> Mode:  # fmt: skip
    """One mode; `length` is that of a full batch."""
    step_s = deployment.cost.step_s(length, batch)
    busy = {
        task: _decode_s(deployment, task, one, length, step_s) / batch + prefill_s(deployment, one)
        for task, one in traffic.items()
    }
    share = _decode_share(deployment, traffic, busy)
    tpot_s = {task: step_s / slow[task][length] / share for task in traffic}
    longest = length if schedule is None else max(k for _, k in schedule)
    return within(Mode(longest, batch, busy, schedule, tpot_s), targets.tpot_ms)


def within(mode: Mode, tpot_ms: float | None) -> Mode:
    """The mode with only those tasks that it serves in this time."""
    if tpot_ms is None:
        return mode
    served = [task for task in mode.busy_s if 1000 * mode.slow_tpot_s[task] <= tpot_ms]
    if len(served) == len(mode.busy_s):
        return mode
    return replace(mode, busy_s={task: mode.busy_s[task] for task in served})


def _decode_s(
    deployment: Deployment, task: str, one: TaskTraffic, length: int, step_s: float
) -> float:
    """Seconds of a request's steps; the prompt's pass brings its first token."""
    return max(one.output_tokens - 1, 0) / deployment.lengths(task)[length] * step_s


def _decode_share(deployment: Deployment, traffic: Traffic, busy: Mapping[str, float]) -> float:
    """The share of a full replica's time that is not spent on reading prompts."""
    total = sum(one.requests_per_s * busy[task] for task, one in traffic.items())
    reading = sum(
        one.requests_per_s * prefill_s(deployment, one) for one in traffic.values()
    )  # fmt: skip
    return max(1 - reading / total, 0.02)


def schedules(deployment: Deployment, traffic: Traffic, targets: Targets) -> Iterator[Mode]:
    """The traffic's best schedule up to each length: TensorRT-LLM's `draft_len_schedule`.

    Each is held at every batch that fits.
    """
    inverse, slow = _inverse_lengths(deployment, traffic), slow_lengths(deployment, traffic)
    for longest in deployment.draft_lengths:
        batches = deployment.batches[longest]
        lengths = best_schedule(deployment.cost, inverse, longest, batches[-1]) if longest else {}
        for batch in batches if longest in lengths.values() else ():
            used = tuple((bound, k) for bound, k in lengths.items() if bound < batch)
            last = next(k for bound, k in lengths.items() if bound >= batch)
            schedule = (*used, (batch, last))
            yield make_mode(deployment, traffic, targets, last, batch, slow, schedule)


def _inverse_lengths(deployment: Deployment, traffic: Traffic) -> list[float]:
    """The mean of 1 / AL(K) over the traffic's tokens, by K."""
    tokens = {task: one.requests_per_s * one.output_tokens for task, one in traffic.items()}
    total = sum(tokens.values())
    by_task = {task: deployment.lengths(task) for task in traffic}
    return [
        sum(tokens[task] / lengths[k] for task, lengths in by_task.items()) / total
        for k in range(len(next(iter(by_task.values()))))
    ]


def undominated(modes: Sequence[Mode], loads: Sequence[float] | None = None) -> list[Mode]:
    """The modes of which no other serves the same tasks in less time.

    `loads` has the share of each one's slots that may be busy; without it they are alike.
    """
    shares = loads or [1.0] * len(modes)
    costs = [
        {t: s / share for t, s in m.busy_s.items()} for m, share in zip(modes, shares, strict=True)
    ]
    return [
        mode
        for i, mode in enumerate(modes)
        if not any(_is_better(other, costs[i], j < i) for j, other in enumerate(costs) if j != i)
    ]


def _is_better(other: Mapping[str, float], own: Mapping[str, float], is_first: bool) -> bool:
    """Whether `other` serves all that `own` does, as fast; of equals the first one stays."""
    if not own.keys() <= other.keys():
        return False
    gains = [own[task] - other[task] for task in own]
    is_equal = not any(gains) and own.keys() == other.keys()
    return all(gain >= 0 for gain in gains) and (is_first or not is_equal)
