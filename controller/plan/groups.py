"""What a fleet is asked to hold, and the groups of replicas that hold it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trt_mtp.controller.plan.check import Latencies, Spread
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.modes import Mode, Targets
from trt_mtp.controller.plan.program import Problem, growth
from trt_mtp.controller.plan.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Group:
    """Replicas that run alike, and the requests per second of each task that they get."""

    mode: Mode
    count: int
    flow: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Groups that hold the targets in the simulator, and what their users see there."""

    groups: tuple[Group, ...]
    tasks: Mapping[str, tuple[Spread, Spread]]  # TPOT and TTFT
    capacities: tuple[float, ...]  # full replicas' time per second that each group may use

    @property
    def num_replicas(self) -> int:
        """All replicas."""
        return sum(group.count for group in self.groups)

    def growth(self, lost: int | None = None) -> float:
        """How many times its traffic it carries, also with a replica of group `lost` less."""
        rates: dict[str, float] = {}
        for group in self.groups:
            for task, rate in group.flow.items():
                rates[task] = rates.get(task, 0.0) + rate
        capacities = [
            capacity * (group.count - (i == lost)) / group.count
            for i, (group, capacity) in enumerate(zip(self.groups, self.capacities, strict=True))
        ]
        return growth([group.mode for group in self.groups], capacities, rates)


@dataclass(frozen=True, slots=True)
class Question:
    """What a fleet is asked to hold."""

    deployment: Deployment
    traffic: Traffic
    targets: Targets
    problem: Problem
    seed: int = 0
    known: dict[Any, Any] = field(default_factory=dict, compare=False)  # see judge.py


def busy_of(group: Group) -> float:
    """Full replicas that a group's requests keep busy."""
    return sum(rate * group.mode.busy_s[task] for task, rate in group.flow.items())


def by_task(
    groups: Sequence[Group], seen: Sequence[Latencies], traffic: Traffic
) -> dict[str, tuple[Spread, Spread]]:
    """The percentiles of each task over all groups, each by its share of the task's requests."""
    return {
        task: (
            _pooled([(g.flow[task], s.tpot_ms[task]) for g, s in _with(groups, seen, task)]),
            _pooled([(g.flow[task], s.ttft_ms[task]) for g, s in _with(groups, seen, task)]),
        )
        for task in traffic
    }


def _with(
    groups: Sequence[Group], seen: Sequence[Latencies], task: str
) -> list[tuple[Group, Latencies]]:
    return [(g, s) for g, s in zip(groups, seen, strict=True) if task in s.tpot_ms]


def _pooled(parts: Sequence[tuple[float, Any]]) -> Spread:
    values = np.concatenate([values for _, values in parts])
    weights = np.concatenate([np.full(len(values), w / len(values)) for w, values in parts])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    at = [min(int(np.searchsorted(reached, share)), len(values) - 1) for share in (0.5, 0.99)]
    return Spread(*(float(values[order][i]) for i in at))
