"""What to deploy: one variant where that is as cheap, else the mix; and how sure that is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from trt_mtp.controller.plan.check import Spread
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.groups import Fleet, Question
from trt_mtp.controller.plan.modes import Targets
from trt_mtp.controller.plan.program import DISTINCT, Problem
from trt_mtp.controller.plan.refusals import is_unreadable, refuse
from trt_mtp.controller.plan.sizing import (
    least,
    least_single,
    mixed,
    scheduled,
    single,
)
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic

WORTH = 0.02  # of the cost: what a second variant or a schedule has to save
POOL_SHARE = 0.005  # of the fleet that each further draft length or batch has to save
SHIFT = 0.2  # of the requests: by how much the mix may turn to one task
_TIE = 0.02  # of the speed, within which the shorter draft length is taken


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asks for; replicas are of `gpus_per_replica` GPUs."""

    targets: Targets
    gpus: int
    gpu_cost: float = 1.0
    spare: int = 0
    present: Mapping[int, int] | None = None
    seed: int = 0


class Alternative(NamedTuple):
    """A fleet of one kind of replica, and its cost; None where there is none."""

    fleet: Fleet | None
    cost: float | None


class Shift(NamedTuple):
    """A task whose requests become more, and the replicas that the program then asks for."""

    task: str
    num_replicas: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The fleet to deploy and what it was weighed against."""

    deployment: Deployment
    traffic: Traffic
    wishes: Wishes
    fleet: Fleet
    cost: float
    best_single: Alternative
    schedule_everywhere: Alternative
    router_gain: float  # of the best single length's cost, 0 to 1
    shifts: tuple[Shift, ...]  # the dearest first

    @property
    def tasks(self) -> Mapping[str, tuple[Spread, Spread]]:
        """TPOT and TTFT of each task."""
        return self.fleet.tasks

    @property
    def headroom(self) -> float:
        """By which share the traffic may grow before a margin is used up."""
        return max(self.fleet.growth() - 1, 0.0)

    @property
    def after_loss(self) -> float:
        """How many times the traffic is carried when the worst replica to lose is lost."""
        return min(self.fleet.growth(lost) for lost in range(len(self.fleet.groups)))

    @property
    def is_mixed(self) -> bool:
        """Whether it needs a router."""
        return len(self.fleet.groups) > 1


def make_plan(deployment: Deployment, traffic: Traffic, wishes: Wishes) -> Plan:
    """The plan; raises InputError, with what would do, if the targets can't be met."""
    question = _question(deployment, traffic, wishes)
    if is_unreadable(question):
        raise refuse(question, wishes.gpus)
    best = _best_single(question)
    schedule = scheduled(question)
    mix = _mix(question, best, schedule)
    fleet = _chosen(best, schedule, mix)
    if fleet is None:
        raise refuse(question, wishes.gpus)
    return Plan(
        deployment,
        traffic,
        wishes,
        fleet,
        _cost(deployment, wishes, fleet),
        _alternative(deployment, wishes, best),
        _alternative(deployment, wishes, schedule),
        _router_gain(best, mix),
        _shifts(question),
    )


def _question(deployment: Deployment, traffic: Traffic, wishes: Wishes) -> Question:
    rates = {task: one.requests_per_s for task, one in traffic.items()}
    most = wishes.gpus // deployment.gpus_per_replica
    problem = Problem(rates, most, wishes.spare, wishes.present or {})
    question = Question(deployment, traffic, wishes.targets, problem, wishes.seed)
    size = min(least_single(question, k) for k in deployment.draft_lengths)
    distinct = max(DISTINCT, POOL_SHARE * min(size, most))
    return replace(question, problem=replace(problem, distinct=distinct))


def _cost(deployment: Deployment, wishes: Wishes, fleet: Fleet) -> float:
    return fleet.num_replicas * deployment.gpus_per_replica * wishes.gpu_cost


def _alternative(deployment: Deployment, wishes: Wishes, fleet: Fleet | None) -> Alternative:
    return Alternative(fleet, None if fleet is None else _cost(deployment, wishes, fleet))


def _best_single(question: Question) -> Fleet | None:
    """The cheapest fleet of one draft length; of equals the fastest, and then the shortest."""
    most = question.problem.most
    bounds = {k: least_single(question, k) for k in question.deployment.draft_lengths}
    best: Fleet | None = None
    for length in sorted(bounds, key=lambda k: (bounds[k], k)):
        at_most = most if best is None else best.num_replicas
        if bounds[length] > at_most:
            break
        fleet = single(question, length, at_most)
        if fleet is not None and _is_better(fleet, best, question):
            best = fleet
    return best


def _is_better(fleet: Fleet, best: Fleet | None, question: Question) -> bool:
    if best is None or fleet.num_replicas != best.num_replicas:
        return best is None or fleet.num_replicas < best.num_replicas
    speedup = mean_tpot_ms(best, question.traffic) / mean_tpot_ms(fleet, question.traffic)
    is_shorter = fleet.groups[0].mode.draft_length < best.groups[0].mode.draft_length
    return speedup > 1 + _TIE or (is_shorter and speedup >= 1 / (1 + _TIE))


def mean_tpot_ms(fleet: Fleet, traffic: Traffic) -> float:
    """The median time per token, averaged over the traffic's output tokens."""
    tokens = {task: one.requests_per_s * one.output_tokens for task, one in traffic.items()}
    return sum(tokens[task] * fleet.tasks[task][0].p50 for task in tokens) / sum(tokens.values())


def _mix(question: Question, best: Fleet | None, schedule: Fleet | None) -> Fleet | None:
    """The checked mix, if the program says that it may save enough."""
    found = [fleet.num_replicas for fleet in (best, schedule) if fleet is not None]
    at_most = (1 - WORTH) * min(found, default=math.inf)
    if least(question) > at_most:
        return None
    # of equal fleets the program picks by its bounds, and the search may end differently
    problem = replace(question.problem, most=int(min(at_most, question.problem.most)))
    return mixed(replace(question, problem=problem), at_most) or mixed(question, at_most)


def _chosen(best: Fleet | None, schedule: Fleet | None, mix: Fleet | None) -> Fleet | None:
    """The simplest of those that are within 2% of the cheapest."""
    found = [fleet for fleet in (best, schedule, mix) if fleet is not None]
    if not found:
        return None
    cheapest = min(fleet.num_replicas for fleet in found)
    return next(fleet for fleet in found if (1 - WORTH) * fleet.num_replicas <= cheapest)


def _router_gain(best: Fleet | None, mix: Fleet | None) -> float:
    """The share of the best single length's replicas that the mix saves; 1 if there is none."""
    if best is None:
        return 1.0
    return max(1 - mix.num_replicas / best.num_replicas, 0.0) if mix is not None else 0.0


def _shifts(question: Question) -> tuple[Shift, ...]:
    """What the program asks for when a fifth of the requests turns to one task."""
    found = []
    for task in question.traffic if len(question.traffic) > 1 else ():
        traffic = shifted(question.traffic, task)
        rates = {name: one.requests_per_s for name, one in traffic.items()}
        problem = replace(question.problem, rates=rates, most=10 * question.problem.most)
        needed = [
            least_single(replace(question, traffic=traffic, problem=problem), k)
            for k in question.deployment.draft_lengths
        ]
        found.append(Shift(task, min(needed)))
    return tuple(sorted(found, key=lambda shift: -shift.num_replicas))


def shifted(traffic: Traffic, task: str) -> dict[str, TaskTraffic]:
    """The traffic with a fifth of all requests taken from the other tasks and given to `task`."""
    total = sum(one.requests_per_s for one in traffic.values())
    others = total - traffic[task].requests_per_s
    moved = min(SHIFT * total, 0.9 * others)
    return {
        name: replace(
            one,
            requests_per_s=one.requests_per_s + moved
            if name == task
            else one.requests_per_s * (1 - moved / others),
        )
        for name, one in traffic.items()
    }
