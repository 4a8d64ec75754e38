"""Whether groups of replicas hold the targets in the simulator: as many requests as it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_mtp.controller.plan.check import NUM_REQUESTS, Latencies, simulate, worst
from trt_mtp.controller.plan.groups import Group, Question

LOOKS = (NUM_REQUESTS, 3 * NUM_REQUESTS, 9 * NUM_REQUESTS)  # more where fewer leave it open
SMALL = 12  # replicas, of which one more is so much that the last look is worth its time
MOST = 0.985  # of what a target is of what was seen, where it is not held


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a group's users saw, and the share of it that each target is: 1 if it holds."""

    latencies: Latencies
    tpot: float
    ttft: float
    is_open: bool  # more requests may tell more

    @property
    def is_held(self) -> bool:
        """Whether both targets hold."""
        return self.tpot == self.ttft == 1.0

    @property
    def is_missed(self) -> bool:
        """Whether one of them surely doesn't."""
        return not self.is_held and not self.is_open


@dataclass(slots=True)
class Judge:
    """Simulates groups for one question, each of them once."""

    question: Question

    def verdicts(self, groups: Sequence[Group]) -> dict[int, Verdict]:
        """Verdicts by the group's index, up to the first that surely misses a target.

        Those with the largest batches come first, as they miss most often.
        """
        order = sorted(range(len(groups)), key=lambda i: -groups[i].mode.batch)
        found: dict[int, Verdict] = {}
        for num_requests in LOOKS:
            for i in order:
                if i not in found or found[i].is_open:
                    found[i] = self._look(groups[i], num_requests)
                if found[i].is_missed:
                    return found
        return found

    def _look(self, group: Group, num_requests: int) -> Verdict:
        mode, known = group.mode, self.question.known
        schedule = mode.schedule or ((mode.batch, mode.draft_length),)
        key = (schedule, mode.batch, group.count, *group.flow.items(), num_requests)
        if key not in known:
            known[key] = self._simulated(group, num_requests)
        verdict: Verdict = known[key]
        return verdict

    def _simulated(self, group: Group, num_requests: int) -> Verdict:
        """The group with as many replicas lost as it has to do without."""
        question = self.question
        count = max(group.count - question.problem.spare, 1)
        seen = simulate(
            question.deployment, question.traffic, group.mode, count, group.flow, question.seed,
            num_requests,
        )  # fmt: skip
        tpot = _factor(seen.tpot_ms, question.targets.tpot_ms)
        ttft = _factor(seen.ttft_ms, question.targets.ttft_ms)
        last = LOOKS[-1] if group.count < SMALL else LOOKS[-2]
        if num_requests < last and None in (tpot, ttft):
            is_missed = min(tpot or 1.0, ttft or 1.0) < 1.0
            return Verdict(seen, tpot or 1.0, ttft or 1.0, not is_missed)
        return Verdict(seen, tpot or MOST, ttft or MOST, False)


def _factor(by_task: Mapping[str, Any], target: float | None) -> float | None:
    """The share of what was seen that the target is; 1 where it holds, None where that is open."""
    if target is None:
        return 1.0
    p99 = worst(by_task)
    if p99.high <= target:
        return 1.0
    return min(target / p99.seen, MOST) if p99.low > target else None
