"""The part of a gateway that shares: two loops beside the requests, which never wait."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from trt_mtp.controller.gateway.shared.config import SharedConfig
from trt_mtp.controller.gateway.shared.learning import SharedLearning
from trt_mtp.controller.gateway.shared.leased_limits import LeasedLimits
from trt_mtp.controller.gateway.shared.metrics import SharedMetrics
from trt_mtp.controller.gateway.shared.reach import Reach
from trt_mtp.controller.gateway.shared.store import RedisStore
from trt_mtp.controller.policy import Policy
from trt_mtp.errors import TrtMtpError

log = logging.getLogger(__name__)

END_S = 2.0  # for ending the loops, and for giving back after them
ASK_AGAIN_S = 0.2
LEARNING, LIMITS = "learning", "limits"  # the parts, as Reach knows them


class Sharing:
    """One gateway's connection to what all know; `begin` and `end` it inside one event loop."""

    def __init__(self, config: SharedConfig, model: str, policy: Policy) -> None:
        """The policy's replica is the name under which the others know this gateway."""
        fingerprint, name = policy.profile.fingerprint, policy.acceptance.replica
        self._config = config
        self._policy = policy
        self._store = RedisStore(config, model, fingerprint, name)
        self.limits = LeasedLimits(self._store)
        self._tasks: list[asyncio.Task[None]] = []
        self._reach: Reach | None = None  # before it begins

    async def begin(self, metrics: SharedMetrics, hosted: Callable[[], frozenset[str]]) -> None:
        """Read what is known, if the store answers, and share from now on."""
        self._reach = reach = Reach(str(self._config), metrics)

        def count(num_gateways: int) -> None:
            self.limits.num_gateways = num_gateways
            metrics.saw(num_gateways)

        learning = SharedLearning(self._store, self._policy, hosted, count)
        first_wait_s = await self._learn(learning, reach)
        self._tasks = [
            asyncio.create_task(self._keep_learning(learning, reach, first_wait_s)),
            asyncio.create_task(self._keep_leasing(reach)),
        ]

    async def end(self) -> None:
        """Leave nothing behind, if the store answers within END_S.

        Where it never answered there is nothing to take back.
        """
        await _ended(self._tasks)
        was_reached = self._reach is not None and self._reach.was_reached
        try:
            async with asyncio.timeout(END_S):
                if was_reached:
                    await self.limits.give_back()
                    await self._store.leave()
                await self._store.close()
        except (TimeoutError, TrtMtpError):
            if was_reached:
                log.warning(
                    "what this gateway shared could not be taken back: it expires by itself"
                )

    async def _keep_learning(self, learning: SharedLearning, reach: Reach, wait_s: float) -> None:
        while True:
            await asyncio.sleep(wait_s)
            wait_s = await self._learn(learning, reach)

    async def _learn(self, learning: SharedLearning, reach: Reach) -> float:
        """One exchange; how long to wait before the next, in seconds."""
        try:
            await learning.exchange()
        except Exception as error:  # whatever a server answers, the loop goes on
            return reach.failed(LEARNING, error)
        reach.succeeded(LEARNING)
        return learning.period_s

    async def _keep_leasing(self, reach: Reach) -> None:
        wait_s = 0.0
        while True:
            await asyncio.sleep(wait_s)
            await self.limits.wait_wanted()
            wait_s = await self._lease(reach)

    async def _lease(self, reach: Reach) -> float:
        """One exchange, if anything is wanted; how long to wait before the next, in seconds."""
        try:
            has_asked = await self.limits.exchange()
            if reach.is_away(LIMITS) and not has_asked:
                await self._store.ping()
        except Exception as error:  # as above
            self.limits.lose()
            return reach.failed(LIMITS, error)
        if has_asked or reach.is_away(LIMITS):
            reach.succeeded(LIMITS)
        return 0.0


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and wait for their end, for END_S at most.

    Asked again and again: a client library in the middle of something may swallow a cancellation.
    """
    pending, until = set(tasks), time.monotonic() + END_S
    while pending and time.monotonic() < until:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=ASK_AGAIN_S)
