"""How many replicas of which mode hold the targets: solved, then simulated, until they do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trt_mtp.controller.plan.erlang import MAX_LOAD, allowed_load
from trt_mtp.controller.plan.groups import Fleet, Group, Question, busy_of, by_task
from trt_mtp.controller.plan.judge import Judge, Verdict
from trt_mtp.controller.plan.modes import (
    Mode,
    all_modes,
    prefill_s,
    schedules,
    undominated,
    within,
)
from trt_mtp.controller.plan.program import Solution, solve
from trt_mtp.controller.plan.traffic import Traffic

ROUNDS = 24  # of tightening until a fleet counts as impossible
LEAST = 0.7  # by how much one of them lowers a group's load at most, however far it missed
NEAR = 0.9  # a miss of less than this is first answered with less load
LOWEST_LOAD = 0.03  # below which more replicas change nothing
NO_TARGET_WAIT = 1.0  # without one for TTFT, a request in a hundred may wait for a whole service

Key = tuple[str, int]  # of a mode; schedules change with the traffic and count as one
Pick = Callable[[Sequence[Mode], Sequence[float]], list[Mode]]  # of modes with their loads


@dataclass(slots=True)
class Margins:
    """What rounds found out about modes: how busy they may be, and how fast they are."""

    loads: dict[Key, float] = field(default_factory=dict)
    slower: dict[Key, float] = field(default_factory=dict)  # than predicted, as a factor

    def load(self, mode: Mode) -> float:
        """The share of its slots that may be busy."""
        return self.loads.get(_key(mode), MAX_LOAD)

    def within(self, mode: Mode, tpot_ms: float | None) -> Mode:
        """The mode with those tasks that it serves in time."""
        slower = self.slower.get(_key(mode), 1.0)
        return mode if tpot_ms is None else within(mode, tpot_ms / slower)

    def learn(self, mode: Mode, load: float, verdict: Verdict) -> None:
        """Take in a verdict on a group that was sized for `load`.

        TPOT falls about half as fast as load. Where that takes too much, the mode is left to its
        faster tasks.
        """
        key, lowered = _key(mode), min(verdict.tpot**2, verdict.ttft)
        if verdict.tpot < NEAR:
            self.slower[key] = self.slower.get(key, 1.0) / verdict.tpot
            lowered = verdict.ttft
        self.loads[key] = load * max(lowered, LEAST)


def _key(mode: Mode) -> Key:
    return mode.name if mode.schedule is None else "schedule", mode.batch


def mixed(question: Question, at_most: float = math.inf) -> Fleet | None:
    """The cheapest fleet of any draft lengths; None if there is none of `at_most` replicas."""
    modes = all_modes(question.deployment, question.traffic, question.targets)
    return hold(question, modes, undominated, at_most)


def single(question: Question, draft_length: int, at_most: float = math.inf) -> Fleet | None:
    """The cheapest fleet of one draft length at one batch; None if it takes more replicas."""
    found = all_modes(question.deployment, question.traffic, question.targets)
    own = [mode for mode in found if mode.draft_length == draft_length]
    return hold(question, own, _cheapest(question.traffic), at_most)


def scheduled(question: Question) -> Fleet | None:
    """The cheapest fleet whose replicas all follow the traffic's best schedule."""
    found = list(schedules(question.deployment, question.traffic, question.targets))
    return hold(question, found, _cheapest(question.traffic))


def least_single(question: Question, draft_length: int) -> float:
    """The same for one draft length."""
    found = all_modes(question.deployment, question.traffic, question.targets)
    return _least_of(question, [mode for mode in found if mode.draft_length == draft_length])


def _least_of(question: Question, modes: Sequence[Mode]) -> float:
    cheapest = _cheapest(question.traffic)(modes, [MAX_LOAD] * len(modes))
    if not cheapest:
        return float("inf")
    return math.ceil(busy(question.traffic, cheapest[0]) / MAX_LOAD) + question.problem.spare


def least_scheduled(question: Question) -> float:
    """The same for one schedule everywhere."""
    found = list(schedules(question.deployment, question.traffic, question.targets))
    return _least_of(question, found)


def _cheapest(traffic: Traffic) -> Pick:
    """Picks, of the modes that serve all tasks, the one that takes the fewest replicas, or none.

    Of equals the one with the larger batch, which has room for more.
    """

    def pick(modes: Sequence[Mode], loads: Sequence[float]) -> list[Mode]:
        whole = [
            (busy(traffic, mode) / load, -mode.batch, i)
            for i, (mode, load) in enumerate(zip(modes, loads, strict=True))
            if mode.busy_s.keys() == traffic.keys()
        ]
        return [modes[min(whole)[2]]] if whole else []

    return pick


def busy(traffic: Traffic, mode: Mode) -> float:
    """Full replicas that the traffic keeps busy in this mode."""
    return sum(traffic[task].requests_per_s * seconds for task, seconds in mode.busy_s.items())


def hold(
    question: Question, modes: Sequence[Mode], pick: Pick, at_most: float = math.inf
) -> Fleet | None:
    """The cheapest fleet of what `pick` takes of `modes` whose simulated percentiles hold.

    None if there is none of `at_most` replicas. Each round asks for as many as the one before or
    more, so that a search ends, unsimulated, where it has become too dear.
    """
    margins, judge = Margins(), Judge(question)
    for _ in range(ROUNDS):
        solved = _solved(question, modes, pick, margins)
        if solved is None:
            return None
        groups, used = solved
        if sum(group.count for group in groups) > at_most:
            return None
        verdicts = judge.verdicts(groups)
        if all(verdict.is_held for verdict in verdicts.values()):
            return _fleet(question, groups, used, [verdicts[i] for i in range(len(groups))])
        for i, verdict in verdicts.items():
            margins.learn(groups[i].mode, used[i], verdict)
        if min(margins.loads.values()) < LOWEST_LOAD:
            return None
    return None


def _fleet(
    question: Question, groups: Sequence[Group], used: Sequence[float],
    verdicts: Sequence[Verdict],
) -> Fleet:  # fmt: skip
    capacities = tuple(
        load * (group.count - question.problem.spare)
        for group, load in zip(groups, used, strict=True)
    )
    seen = [verdict.latencies for verdict in verdicts]
    return Fleet(tuple(groups), by_task(groups, seen, question.traffic), capacities)


def _solved(
    question: Question, modes: Sequence[Mode], pick: Pick, margins: Margins
) -> tuple[list[Group], list[float]] | None:
    """Groups with the loads they are sized for, after Erlang's margin; None if impossible.

    A load that the margin lowers stays lowered.
    """
    able = [margins.within(mode, question.targets.tpot_ms) for mode in modes]
    able = [mode for mode in able if mode.busy_s]
    for _ in range(6):
        picked = pick(able, [margins.load(mode) for mode in able])
        allowed = [margins.load(mode) for mode in picked]
        solution = solve(question.problem, picked, allowed) if picked else None
        if solution is None:
            return None
        groups, used = _groups(picked, solution, allowed)
        if not _lower(question, groups, used, margins.loads):
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
    loads: dict[Key, float],
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


def least(question: Question) -> float:
    """The replicas that the program asks for before any margin: no checked fleet has fewer.

    Infinity if there is no such fleet.
    """
    modes = undominated(all_modes(question.deployment, question.traffic, question.targets))
    solution = solve(question.problem, modes, [MAX_LOAD] * len(modes)) if modes else None
    return float("inf") if solution is None else solution.num_replicas
