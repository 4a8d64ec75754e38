"""How many replicas of which mode hold the targets: solved, then simulated, until they do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_mtp.controller.plan.check import Latencies, Spread, simulate
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.erlang import MAX_LOAD, allowed_load
from trt_mtp.controller.plan.modes import (
    Mode,
    Targets,
    all_modes,
    prefill_s,
    schedules,
    undominated,
)
from trt_mtp.controller.plan.program import Problem, Solution, growth, solve
from trt_mtp.controller.plan.traffic import Traffic

ROUNDS = 14  # of tightening until a fleet counts as impossible
LEAST = 0.7  # by how much one of them lowers a group's load at most, however far it missed
MOST = 0.96  # and at least
LESS_TPOT = 0.95  # of the target that modes are chosen by, where less load doesn't help
NEAR = 0.9  # a miss of less than this is first answered with less load
LOWEST_LOAD = 0.03  # below which more replicas change nothing
NO_TARGET_WAIT = 1.0  # without one for TTFT, a request in a hundred may wait for a whole service

Choose = Callable[[float], list[Mode]]  # the modes to choose among, by how far TPOT is tightened


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


def mixed(question: Question, at_most: float = math.inf) -> Fleet | None:
    """The cheapest fleet of any draft lengths; None if there is none of `at_most` replicas."""

    def choose(tightened: float) -> list[Mode]:
        found = all_modes(question.deployment, question.traffic, question.targets, tightened)
        return undominated(found)

    return hold(question, choose, at_most)


def single(question: Question, draft_length: int, at_most: float = math.inf) -> Fleet | None:
    """The cheapest fleet of one draft length at one batch; None if it takes more replicas."""

    def choose(tightened: float) -> list[Mode]:
        found = all_modes(question.deployment, question.traffic, question.targets, tightened)
        return _cheapest(question, [mode for mode in found if mode.draft_length == draft_length])

    return hold(question, choose, at_most)


def scheduled(question: Question) -> Fleet | None:
    """The cheapest fleet whose replicas all follow the traffic's best schedule."""

    def choose(tightened: float) -> list[Mode]:
        found = schedules(question.deployment, question.traffic, question.targets, tightened)
        return _cheapest(question, list(found))

    return hold(question, choose)


def least_single(question: Question, draft_length: int) -> float:
    """The same for one draft length."""
    found = all_modes(question.deployment, question.traffic, question.targets)
    own = _cheapest(question, [mode for mode in found if mode.draft_length == draft_length])
    return _least_of(question, own)


def _least_of(question: Question, modes: Sequence[Mode]) -> float:
    if not modes:
        return float("inf")
    return math.ceil(busy(question.traffic, modes[0]) / MAX_LOAD) + question.problem.spare


def least_scheduled(question: Question) -> float:
    """The same for one schedule everywhere."""
    found = list(schedules(question.deployment, question.traffic, question.targets))
    return _least_of(question, _cheapest(question, found))


def _cheapest(question: Question, modes: Sequence[Mode]) -> list[Mode]:
    """Of the modes that serve all tasks, the one that takes the least time; none if there is none.

    Of equals the one with the larger batch, which has room for more.
    """
    whole = [mode for mode in modes if mode.busy_s.keys() == question.traffic.keys()]
    return [min(whole, key=lambda m: (busy(question.traffic, m), -m.batch))] if whole else []


def busy(traffic: Traffic, mode: Mode) -> float:
    """Full replicas that the traffic keeps busy in this mode."""
    return sum(traffic[task].requests_per_s * seconds for task, seconds in mode.busy_s.items())


def hold(question: Question, choose: Choose, at_most: float = math.inf) -> Fleet | None:
    """The cheapest fleet of the modes of `choose` whose simulated percentiles hold the targets.

    None if there is none of `at_most` replicas. Each round asks for as many as the one before or
    more, so that a search ends, unsimulated, where it has become too dear.
    """
    tightened = 1.0
    loads: dict[tuple[str, int], float] = {}
    for _ in range(ROUNDS):
        found = _solved(question, choose(tightened), loads)
        if found is None:
            return None
        groups, used = found
        if sum(group.count for group in groups) > at_most:
            return None
        seen = [_simulated(question, group) for group in groups]
        missed = [_missed(latencies, question.targets) for latencies in seen]
        if all(factor == 1.0 for pair in missed for factor in pair):
            return _fleet(question, groups, used, seen)
        for group, load, factors in zip(groups, used, missed, strict=True):
            loads[_key(group.mode)] = load * min(factors)
        is_far = [
            tpot < NEAR or (tpot < 1.0 and load < NEAR * MAX_LOAD)
            for load, (tpot, _) in zip(used, missed, strict=True)
        ]
        tightened *= LESS_TPOT if any(is_far) else 1.0
        if min(loads.values()) < LOWEST_LOAD:
            return None
    return None


def _fleet(
    question: Question, groups: Sequence[Group], used: Sequence[float], seen: Sequence[Latencies]
) -> Fleet:
    capacities = tuple(
        load * (group.count - question.problem.spare)
        for group, load in zip(groups, used, strict=True)
    )
    return Fleet(tuple(groups), _by_task(groups, seen, question.traffic), capacities)


def _key(mode: Mode) -> tuple[str, int]:
    return mode.name if mode.schedule is None else "schedule", mode.batch


def _solved(
    question: Question, modes: Sequence[Mode], loads: dict[tuple[str, int], float]
) -> tuple[list[Group], list[float]] | None:
    """Groups with the loads they are sized for, after Erlang's margin; None if impossible.

    A load that the margin lowers stays lowered.
    """
    for _ in range(6):
        allowed = [loads.get(_key(mode), MAX_LOAD) for mode in modes]
        solution = solve(question.problem, modes, allowed) if modes else None
        if solution is None:
            return None
        groups, used = _groups(modes, solution, allowed)
        if not _lower(question, groups, used, loads):
            break
    return groups, used


def _groups(
    modes: Sequence[Mode], solution: Solution, allowed: Sequence[float]
) -> tuple[list[Group], list[float]]:
    """The modes in use; replicas that no request comes to are left out."""
    kept = [
        (Group(mode, count, flow), load)
        for mode, count, flow, load in zip(
            modes, solution.counts, solution.flows, allowed, strict=True
        )
        if count and flow
    ]
    return [group for group, _ in kept], [load for _, load in kept]


def _lower(
    question: Question, groups: Sequence[Group], used: Sequence[float],
    loads: dict[tuple[str, int], float],
) -> bool:  # fmt: skip
    """Lower the loads at which requests would wait too long; False if none is."""
    is_lowered = False
    for group, load in zip(groups, used, strict=True):
        limit = _wait_limit(question, group)
        if limit is None:
            continue
        slots = (group.count - question.problem.spare) * group.mode.batch
        most = allowed_load(max(slots, 1), limit, _service_s(question.traffic, group))
        real = busy_of(group) / max(group.count - question.problem.spare, 1)
        if most < min(load, real) * 0.995 and most > 0.02:
            loads[_key(group.mode)] = most
            is_lowered = True
    return is_lowered


def busy_of(group: Group) -> float:
    """Full replicas that a group's requests keep busy."""
    return sum(rate * group.mode.busy_s[task] for task, rate in group.flow.items())


def _service_s(traffic: Traffic, group: Group) -> float:
    """Seconds that a request holds a slot of a full replica, on average over the group's."""
    return busy_of(group) * group.mode.batch / sum(group.flow.values())


def _wait_limit(question: Question, group: Group) -> float | None:
    """Seconds that 99 of 100 requests may wait: what reading the prompt leaves of the target."""
    target = question.targets.ttft_ms
    if target is None:
        return NO_TARGET_WAIT * _service_s(question.traffic, group)
    reading = max(
        prefill_s(question.deployment, question.traffic[task]) for task in group.flow
    )  # fmt: skip
    return max(target / 1000 - reading, 0.1 * target / 1000)


def _simulated(question: Question, group: Group) -> Latencies:
    """The group with as many replicas lost as it has to do without."""
    count = max(group.count - question.problem.spare, 1)
    return simulate(
        question.deployment, question.traffic, group.mode, count, group.flow, question.seed
    )


def least(question: Question) -> float:
    """The replicas that the program asks for before any margin: no checked fleet has fewer.

    Infinity if there is no such fleet.
    """
    modes = undominated(all_modes(question.deployment, question.traffic, question.targets))
    solution = solve(question.problem, modes, [MAX_LOAD] * len(modes)) if modes else None
    return float("inf") if solution is None else solution.num_replicas


def _missed(latencies: Latencies, targets: Targets) -> tuple[float, float]:
    """How much TPOT and TTFT have to be tightened; 1 where the 99th percentile holds."""
    tpot, ttft = latencies.worst()
    return _factor(tpot, targets.tpot_ms), _factor(ttft, targets.ttft_ms)


def _factor(seen: float, target: float | None) -> float:
    if target is None or seen <= target:
        return 1.0
    return max(target / seen, LEAST) if target / seen < NEAR else MOST


def _by_task(
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
