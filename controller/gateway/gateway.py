"""The gateway: KServe v2 gRPC in front of Triton, where the public model is all its variants."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trt_mtp.controller.gateway.access.authenticator import Authenticator
from trt_mtp.controller.gateway.access.config import OPEN, AccessConfig
from trt_mtp.controller.gateway.access.limits import Limits
from trt_mtp.controller.gateway.admission_queue import AdmissionQueue
from trt_mtp.controller.gateway.grpc_server import GrpcServer
from trt_mtp.controller.gateway.hang_detector import WATCH_S, HangDetector, StallLimits
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.observers import Learning
from trt_mtp.controller.gateway.openai.options import OpenAiOptions
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.retry_budget import RetryBudget
from trt_mtp.controller.gateway.router import Router
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat
from trt_mtp.controller.gateway.servers.candidates import Preference
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.policy import RoutingPolicy
from trt_mtp.serve.hosts import host_and_port

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.ext_proc.server import PickerServer
    from trt_mtp.controller.gateway.http.server import HttpServer

log = logging.getLogger(__name__)

ADMIN_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How a gateway is reached and what it stands in front of."""

    triton: str  # see servers/sources.py
    model: str = "qwen_mtp"  # the public model
    openai: OpenAiOptions = field(default_factory=OpenAiOptions)
    host: str = "127.0.0.1"
    port: int = 8001  # 0 takes a free one
    http_port: int | None = None  # None: no HTTP; 0 takes a free one
    admin_port: int | None = None  # on 127.0.0.1; None: none; 0 takes a free one
    ext_proc_port: int | None = None  # Envoy's picker; None: none; 0 takes a free one
    is_port_shared: bool = False  # with other gateways that say so too (SO_REUSEPORT)
    seat: Seat | None = None  # for one of several workers
    ready_timeout_s: float = 60.0
    grace_s: float = 30.0  # for answers in flight when the gateway stops
    max_message_bytes: int = 4 * 1024 * 1024  # a million token ids
    access: AccessConfig = OPEN
    max_waiting: int = 1024  # requests for which every variant is too busy
    stall: StallLimits = field(default_factory=StallLimits)
    failover_wait_s: float = 30.0  # for a ready variant, while there is none
    zone: str = ""  # where it runs: servers there are used first
    subset_size: int | None = None  # servers of each variant that it uses; None for all


class Gateway:
    """Make, start and stop it inside one event loop."""

    def __init__(
        self, config: GatewayConfig, policy: RoutingPolicy, limits: Limits | None = None
    ) -> None:
        """`limits` are those of tenants; None counts them here alone."""
        self.config = config
        preference = Preference(socket.gethostname(), config.zone, config.subset_size)
        self.pool = Pool(config.triton, config.model, config.access.triton_tls, preference)
        self.metrics = GatewayMetrics()
        scoreboard = Scoreboard(config.seat)
        self.detector = HangDetector(config.stall, scoreboard)
        self.authenticator = Authenticator(config.access, limits or scoreboard)
        self.router = Router(self.pool, policy, self.detector, scoreboard, self.metrics)
        self._learning = Learning(policy, self.metrics)
        self.router.observers.append(self._learning)
        self.queue = AdmissionQueue(
            self.router.place,
            self.router.kind,
            config.max_waiting,
            config.failover_wait_s,
            scoreboard.counter("waiting"),
            self.metrics.waiting,
        )
        self.router.on_free = self.queue.serve_waiting
        retries = RetryBudget(scoreboard.counter("retries").time)
        self.proxy = Proxy(self.pool, self.queue, retries, self.metrics)
        self.port = 0  # known after start
        self.http_port: int | None = None  # known after start, where there is one
        self.admin_port: int | None = None  # the same
        self.ext_proc_port: int | None = None  # the same
        self.on_drain: Callable[[], None] = lambda: None  # called when the admin port is asked to
        self._http: HttpServer | None = None
        self._admin: HttpServer | None = None
        self._picker: PickerServer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._grpc = GrpcServer(
            self.proxy,
            self.authenticator,
            config.access,
            max_message_bytes=config.max_message_bytes,
            is_port_shared=config.is_port_shared,
        )

    @property
    def address(self) -> str:
        """HOST:PORT that clients connect to."""
        return host_and_port(self.config.host, self.port)

    @property
    def http_address(self) -> str | None:
        """HOST:PORT of HTTP, where it is served."""
        return self._at_host(self.http_port)

    def _at_host(self, port: int | None) -> str | None:
        return None if port is None else host_and_port(self.config.host, port)

    async def connect(self) -> None:
        """Take the port and wait for a ready variant; clients are served by `start`.

        Raises InputError for a port that is in use or wrong TLS files, TrtMtpError if no variant
        gets ready.
        """
        self.port = self._grpc.bind(self.config.host, self.config.port)
        await self.pool.wait_ready(self.config.ready_timeout_s)

    async def start(self) -> None:
        """Serve; raises InputError for an HTTP port that is in use or wrong TLS files."""
        await self._start_http()
        await self._grpc.start()
        await self._start_picker()
        self.pool.watch()
        self._watcher = asyncio.create_task(self._watch())

    async def _start_http(self) -> None:
        config = self.config
        if config.http_port is None and config.admin_port is None:
            return
        from trt_mtp.controller.gateway.http.admin import ACCESS, admin_app  # aiohttp takes time
        from trt_mtp.controller.gateway.http.app import PublicHttp
        from trt_mtp.controller.gateway.http.server import HttpServer

        if config.http_port is not None:
            public = PublicHttp(self.proxy, self.authenticator, self.render_metrics, config.openai)
            app = public.app(config.max_message_bytes)
            self._http = HttpServer(app, config.grace_s, config.access, public.look)
            self.http_port = await self._http.start(
                config.host, config.http_port, "--http-port", is_shared=config.is_port_shared
            )
        if config.admin_port is not None:
            self._admin = HttpServer(admin_app(self), 0.0, ACCESS, lambda: None)
            self.admin_port = await self._admin.start(ADMIN_HOST, config.admin_port, "--admin-port")

    async def _start_picker(self) -> None:
        config = self.config
        if config.ext_proc_port is None:
            return
        from trt_mtp.controller.gateway.ext_proc.server import PickerServer  # so does aiohttp here

        size = config.max_message_bytes
        self._picker = PickerServer(self.proxy, self.router, self.authenticator, size)
        self.ext_proc_port = await self._picker.start(config.host, config.ext_proc_port)

    async def stop(self) -> None:
        """Take no more requests, finish those in flight within the grace period, and close."""
        stopping = [self._grpc.stop(self.config.grace_s)]
        if self._http is not None:
            stopping.append(self._http.stop())
        if self._picker is not None:
            stopping.append(self._picker.stop(self.config.grace_s))
        await asyncio.gather(*stopping)
        self._learning.learn()  # before anybody writes down what was learned
        if self._admin is not None:
            await self._admin.stop()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self.pool.close()

    @property
    def openai_url(self) -> str | None:
        """What OpenAI's clients take as base_url; None without an HTTP port."""
        scheme = "https" if self.config.access.tls else "http"
        return f"{scheme}://{self.http_address}/v1" if self.http_address else None

    def describe(self) -> dict[str, Any]:
        """What `trt-mtp gateway --json` prints when it is ready."""
        return {
            "schema_version": 1,
            "gateway": self.address,
            "http": self.http_address,
            "openai": self.openai_url,
            "ext_proc": self._at_host(self.ext_proc_port),
            "admin": None if self.admin_port is None else f"{ADMIN_HOST}:{self.admin_port}",
            "model": self.config.model,
            "triton": self.config.triton,
            "variants": [
                {"name": variant.key, "draft_length": variant.draft_length}
                for variant in self.pool.variants.values()
            ],
        }

    def statistics(self) -> dict[str, Any]:
        """Counters by task and by variant, as a JSON object."""
        replicas = self.pool.variants
        lengths = {replica.name: replica.draft_length for replica in replicas.values()}
        return {
            "schema_version": 1,
            "num_refused": self.metrics.num_refused(),
            "num_waiting": self.queue.num_waiting,
            "tasks": self.metrics.tasks(lengths),
            "variants": {
                key: {
                    "draft_length": replica.draft_length,
                    "is_ready": replica.is_ready,
                    "is_ejected": replica.health.is_ejected,
                    "num_running": replica.num_running,
                }
                for key, replica in replicas.items()
            },
        }

    def render_metrics(self) -> bytes:
        """What was counted and timed, in Prometheus' text format."""
        ready: dict[str, bool] = {}
        for replica in self.pool.variants.values():  # one for each server
            ready[replica.name] = ready.get(replica.name, False) or replica.is_ready
        return self.metrics.render(ready)

    async def _watch(self) -> None:
        """What only time brings: overdue answers, variants that take some again, stuck clients."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                self._look()
            except Exception:  # or nobody would look again
                log.exception("the gateway could not look after what waits")

    def _look(self) -> None:
        self.detector.look()
        self.queue.serve_waiting()
        self.authenticator.look()
        self._grpc.look()
        if self._http is not None:
            self._http.look()
        if self._admin is not None:
            self._admin.look()
        if self._picker is not None:
            self._picker.look()
