"""The request path without a server: everything but streams and servers is real."""

import asyncio

from tests.gateway_fixtures import FixedPolicy
from tests.lease_fixtures import BackendDouble, replica_of
from trt_mtp.controller.gateway.admission_queue import AdmissionQueue
from trt_mtp.controller.gateway.hang_detector import HangDetector, StallLimits
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.retry_budget import RetryBudget
from trt_mtp.controller.gateway.router import Router
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.controller.gateway.servers.pool import Pool


class Path:
    """The request path in front of two servers of doubles, with a variant for each of 0 and 3."""

    def __init__(self, first: BackendDouble, second: BackendDouble, max_batch_size: int) -> None:
        self.pool = Pool("127.0.0.1:1,127.0.0.1:2", "qwen_mtp")
        self.servers = first, second
        for name, backend in zip(self.pool.backends, self.servers, strict=True):
            replicas = [replica_of(f"k{k}@{name}", backend) for k in (0, 3)]
            for replica in replicas:
                replica.max_batch_size = max_batch_size
            self.pool.backends[name].variants = {replica.name: replica for replica in replicas}
        self.metrics, scoreboard = GatewayMetrics(), Scoreboard(None)
        detector = HangDetector(StallLimits())
        self.router = Router(self.pool, FixedPolicy(), detector, scoreboard, self.metrics)
        self.closed: list[Lease] = []
        self.router.observers.append(self.closed.append)
        counter = scoreboard.counter("waiting")
        self.queue = AdmissionQueue(
            self.router.place, self.router.kind, 100, 0.0, counter, self.metrics.waiting
        )
        self.router.on_free = self.queue.serve_waiting
        self.proxy = Proxy(self.pool, self.queue, RetryBudget(), self.metrics)
        self.detector = detector
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """Serve the queue every now and then, as the gateway does."""
        while True:
            await asyncio.sleep(0.001)
            self.queue.serve_waiting()

    def counts(self) -> dict[str, int]:
        """How calls ended, over all tasks."""
        tasks = self.metrics.tasks({}).values()
        names = ("num_requests", "num_finished", "num_failed", "num_cancelled")
        return {name: sum(task[name] for task in tasks) for name in names}

    async def check_idle(self) -> None:
        """Nothing is held: no place, no stream, no wait."""
        for _ in range(5):  # rests are read in tasks
            await asyncio.sleep(0)
        for replica in self.pool.variants.values():
            assert (replica.num_running, replica.num_on_trial) == (0, 0)
        assert [server.num_open for server in self.servers] == [0, 0]
        assert self.detector.leases() == []
        assert self.queue.num_waiting == 0
        self._looking.cancel()
        await self.pool.close()
