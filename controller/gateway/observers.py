"""What is done with each closed lease: the policy learns from it, a log gets its line."""

import asyncio
import logging

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.decision_log import DecisionLog, prompt_text
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.policy import RoutingPolicy
from trt_mtp.errors import TrtMtpError

log = logging.getLogger(__name__)

PAUSE_S = 0.05  # from learning to learning again
MAX_WAITING = 256  # outcomes that are not learned yet


class Learning:
    """Teaches the policy: at once, or with others soon after where many answers end.

    What was worked out of the policy's counts holds until it learns again, so that decisions are
    cheaper where it does so seldom.
    """

    def __init__(self, policy: RoutingPolicy, metrics: GatewayMetrics) -> None:
        self._policy, self._metrics = policy, metrics
        self._waiting: list[tuple[Decision, Outcome]] = []
        self._pause: asyncio.TimerHandle | None = None  # until it learns again

    def __call__(self, lease: Lease) -> None:
        """Learn from a lease, now or within PAUSE_S."""
        assert lease.outcome is not None
        self._waiting.append((lease.decision, lease.outcome))
        if self._pause is None or len(self._waiting) >= MAX_WAITING:
            self.learn()

    def learn(self) -> None:
        """Learn from all that waits, in its order, and say when acceptance has shifted."""
        waiting, self._waiting = self._waiting, []
        for decision, outcome in waiting:
            try:
                self._learn(decision, outcome)
            except Exception:  # what is learned may not cost what others teach
                log.exception("of decision %s something is lost", decision.decision_id)
        if self._pause is not None:
            self._pause.cancel()
        later = asyncio.get_running_loop().call_later
        self._pause = later(PAUSE_S, self._go_on) if waiting else None

    def _go_on(self) -> None:
        self._pause = None
        if self._waiting:
            self.learn()

    def _learn(self, decision: Decision, outcome: Outcome) -> None:
        alarm = self._policy.update(decision, outcome)
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
