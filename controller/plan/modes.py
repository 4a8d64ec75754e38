"""The ways to run a replica: a draft length, or a schedule of them, held at a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.measured_schedule import best_schedule
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic
from trt_mtp.controller.simulate.workload import SPREAD

TAIL = 0.01  # of the requests that may miss a target: it is a 99th percentile
Schedule = tuple[tuple[int, int], ...]  # (largest batch, draft length), ascending


@dataclass(frozen=True, slots=True)
class Targets:
    """What 99 of 100 requests of each task get; None where nothing is asked."""

    tpot_ms: float | None = None
    ttft_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """A replica at draft length `draft_length` with at most `batch` requests at a time.

    `busy_s` has the seconds of a full replica's time that a request takes, of the tasks whose
    target holds there.
    """

    draft_length: int  # with a schedule, the longest one: what the replica is built for
    batch: int
    busy_s: Mapping[str, float]
    schedule: Schedule | None = None

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


def all_modes(
    deployment: Deployment, traffic: Traffic, targets: Targets, tightened: float = 1.0
) -> list[Mode]:
    """Every draft length at every batch that fits, with the tasks whose TPOT target holds there.

    `tightened` is what the target is multiplied with.
    """
    return [
        mode
        for length, batches in sorted(deployment.batches.items())
        for batch in batches
        if (mode := make_mode(deployment, traffic, targets, length, batch, tightened)).busy_s
    ]


def make_mode(
    deployment: Deployment, traffic: Traffic, targets: Targets, length: int, batch: int,
    tightened: float = 1.0, schedule: Schedule | None = None,
) -> Mode:  # fmt: skip
    """One mode; `length` is that of a full batch."""
    step_s = deployment.cost.step_s(length, batch)
    busy = {
        task: _decode_s(deployment, task, one, length, step_s) / batch + prefill_s(deployment, one)
        for task, one in traffic.items()
    }
    share = _decode_share(deployment, traffic, busy)
    limit = None if targets.tpot_ms is None else targets.tpot_ms / 1000 * tightened
    holds = {
        task: seconds
        for task, seconds in busy.items()
        if limit is None or step_s / low_acceptance(deployment, task)[length] / share <= limit
    }
    longest = length if schedule is None else max(k for _, k in schedule)
    return Mode(longest, batch, holds, schedule)


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


def schedules(
    deployment: Deployment, traffic: Traffic, targets: Targets, tightened: float = 1.0
) -> Iterator[Mode]:
    """The traffic's best schedule up to each length: TensorRT-LLM's `draft_len_schedule`.

    Each is held at every batch that fits.
    """
    inverse = _inverse_lengths(deployment, traffic)
    for longest in deployment.draft_lengths:
        batches = deployment.batches[longest]
        lengths = best_schedule(deployment.cost, inverse, longest, batches[-1]) if longest else {}
        for batch in batches if longest in lengths.values() else ():
            used = tuple((bound, k) for bound, k in lengths.items() if bound < batch)
            last = next(k for bound, k in lengths.items() if bound >= batch)
            schedule = (*used, (batch, last))
            yield make_mode(deployment, traffic, targets, last, batch, tightened, schedule)


def _inverse_lengths(deployment: Deployment, traffic: Traffic) -> list[float]:
    """The mean of 1 / AL(K) over the traffic's tokens, by K."""
    tokens = {task: one.requests_per_s * one.output_tokens for task, one in traffic.items()}
    total = sum(tokens.values())
    by_task = {task: deployment.lengths(task) for task in traffic}
    return [
        sum(tokens[task] / lengths[k] for task, lengths in by_task.items()) / total
        for k in range(len(next(iter(by_task.values()))))
    ]


def undominated(modes: Sequence[Mode]) -> list[Mode]:
    """The modes of which no other serves the same tasks in less time."""
    return [
        mode
        for i, mode in enumerate(modes)
        if not any(_is_better(other, mode, j < i) for j, other in enumerate(modes) if j != i)
    ]


def _is_better(other: Mode, mode: Mode, is_first: bool) -> bool:
    """Whether `other` serves all that `mode` does, as fast; of equals the first one stays."""
    if not mode.busy_s.keys() <= other.busy_s.keys():
        return False
    gains = [mode.busy_s[task] - other.busy_s[task] for task in mode.busy_s]
    is_equal = not any(gains) and mode.busy_s.keys() == other.busy_s.keys()
    return all(gain >= 0 for gain in gains) and (is_first or not is_equal)
