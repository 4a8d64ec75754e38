"""Requests sent one after another through a policy, beside every static draft length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.simulate.workload import Workload

LENGTHS = (0, 1, 2, 3, 5)


@dataclass(slots=True)
class Watched:
    """A stretch of requests: seconds of the policy's choices and of each static length."""

    policy_s: float = 0.0
    static_s: dict[int, float] = field(default_factory=dict)
    num_alarms: int = 0
    num_requests: int = 0

    def of_best_static(self) -> float:
        """The policy's throughput over that of the best static length."""
        return min(self.static_s.values()) / self.policy_s

    def alarms_per_thousand(self) -> float:
        """Drift alarms per 1,000 requests."""
        return 1000 * self.num_alarms / self.num_requests


def watch(
    policy: Policy,
    workload: Workload,
    mix: Mapping[str, float],
    load: Callable[[int], int],
    num_requests: int,
    lengths: Sequence[int] = LENGTHS,
) -> Watched:
    """Send requests of `mix`; the i-th finds `load(i)` in flight, itself included."""
    result = Watched(static_s=dict.fromkeys(lengths, 0.0))
    for i in range(num_requests):
        batch = load(i)
        alarm = _send(policy, workload, mix, batch, lengths, result)
        result.num_alarms += alarm is not None
        result.num_requests += 1
    return result


def _send(
    policy: Policy, workload: Workload, mix: Mapping[str, float], batch: int,
    lengths: Sequence[int], result: Watched,
) -> DriftAlarm | None:  # fmt: skip
    request = workload.draw(mix)
    hosted = [VariantState(f"k{k}", k, True, batch - 1, 256, 1 << 20) for k in lengths]
    decision = policy.choose(request.features, hosted, now_s=0.0)
    for k in lengths:
        result.static_s[k] += workload.seconds(request, k, batch)
    result.policy_s += workload.seconds(request, decision.draft_length, batch)
    return policy.update(decision, workload.outcome(request, decision.draft_length, load=batch))
