"""What is done with each closed lease: the policy learns from it, a log gets its line."""

import logging

from trt_mtp.controller.decision_log import DecisionLog, prompt_text
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.policy import RoutingPolicy
from trt_mtp.errors import TrtMtpError

log = logging.getLogger(__name__)


class Learning:
    """Teaches the policy."""

    def __init__(self, policy: RoutingPolicy, metrics: GatewayMetrics) -> None:
        self._policy, self._metrics = policy, metrics

    def __call__(self, lease: Lease) -> None:
        """Learn from a lease, and say when acceptance has shifted."""
        assert lease.outcome is not None
        alarm = self._policy.update(lease.decision, lease.outcome)
        if alarm is None:
            return
        self._metrics.drifted(alarm.key.task)
        log.info(
            "acceptance of %s went %s within %d answers: most of what was learned of it is "
            "forgotten",
            alarm.key, alarm.direction, alarm.num_observations,
        )  # fmt: skip


class RequestLogger:
    """Writes decisions with their outcomes, and prompts if asked; a full disk costs no answer."""

    def __init__(self, log_file: DecisionLog, *, log_prompts: bool = False) -> None:
        self._file = log_file
        self._log_prompts = log_prompts
        self.num_lost = 0

    def __call__(self, lease: Lease) -> None:
        """Write a line; one that can't be written is counted."""
        assert lease.outcome is not None
        prompt = prompt_text(lease.call.features) if self._log_prompts else None
        try:
            self._file.append(lease.decision, lease.outcome, prompt)
        except TrtMtpError:
            self.num_lost += 1
