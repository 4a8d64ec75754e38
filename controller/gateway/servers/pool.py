"""All Triton servers behind the gateway, as their source says which there are."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence

import grpc

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.gateway.servers.backend import CALL_TIMEOUT_S, Backend
from trt_mtp.controller.gateway.servers.candidates import Index, Preference
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.gateway.servers.sources import Server, source_of
from trt_mtp.controller.gateway.servers.upstream import Metadata
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

QUIET_S = 2.0  # of waiting for the first variant, before a line says so
LEAVE_S = 3600.0  # for the answers of a server that is gone from its source
LEAVE_POLL_S = 2.0
NO_PREFERENCE = Preference()


class Pool:
    """The servers and their variants. Make it inside the event loop that uses it."""

    def __init__(
        self,
        triton: str,
        public_name: str,
        tls: TlsFiles | None = None,
        preference: Preference = NO_PREFERENCE,
    ) -> None:
        """`triton` is what `source_of` takes.

        Raises InputError for anything else, and for TLS files that can't be used.
        """
        self.public_name = public_name
        self.backends: dict[str, Backend] = {}  # by HOST:PORT
        self._triton = triton
        self._tls = tls
        self._preference = preference
        self._index: Index | None = None  # of the variants that there are; None: to be made
        self._num_variants: int | None = None  # on all servers; None: to be counted
        self._named: Sequence[str] = ()
        self._source = source_of(triton)
        self._follower: asyncio.Task[None] | None = None
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, tuple[Backend, asyncio.Task[None]]] = {}
        self._departures: set[asyncio.Task[None]] = set()
        self._is_watching = False
        for server in self._source.servers:
            self._add(server)

    @property
    def variants(self) -> Mapping[str, Replica]:
        """All variants on all servers by key, in order of draft length."""
        return self.index.by_key

    @property
    def index(self) -> Index:
        """All variants, ordered for choosing among them."""
        if self._index is None:
            replicas = [v for each in self.backends.values() for v in each.variants.values()]
            self._index = Index(replicas, self._preference)
        return self._index

    @property
    def is_ready(self) -> bool:
        """True while any variant says that it is ready."""
        return any(variant.is_ready for variant in self.variants.values())

    def states(
        self, variants: Sequence[Replica], draft_length: int | None = None
    ) -> dict[str, VariantState]:
        """What a policy sees of `variants`, by key, for a request that wants this draft length.

        When none of those that are ready and could take it may be sent a request, all of them count
        as healthy: a doubtful variant is better than none.
        """
        now_s = time.monotonic()
        healthy = {v.key for v in variants if v.health.can_take(now_s)}
        wanted = [v for v in variants if draft_length in (None, v.draft_length)]
        if not any(v.key in healthy for v in wanted):
            healthy |= {v.key for v in wanted if v.is_ready}
        loads = {backend: backend.load(now_s) for backend in {v.backend for v in variants}}
        return {v.key: v.state(v.key in healthy, now_s, loads[v.backend]) for v in variants}

    def first_live(self) -> Backend:
        """The server for what is not about the public model: the first that is alive.

        Raises TrtMtpError while there is none.
        """
        for backend in self.backends.values():
            if backend.is_live:
                return backend
        for backend in self.backends.values():
            return backend
        problem = self._source.problem
        raise TrtMtpError(f"no Triton server: {problem or f'{self._triton} has none'}")

    async def call(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata = ()
    ) -> bytes:
        """One unary RPC to the first server that is alive; raises AioRpcError, TrtMtpError."""
        return await self.first_live().call(method, request, timeout_s, metadata)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the first ready variant; raises TrtMtpError when none comes."""
        deadline, say_at = time.monotonic() + timeout_s, time.monotonic() + QUIET_S
        self._follow()
        while True:
            await self._look()
            if self.is_ready:
                return
            if time.monotonic() > deadline:
                raise TrtMtpError(await self._why_not_ready(timeout_s))
            if time.monotonic() > say_at:
                log.info("waiting for a variant at %s, for %g s at most", self._triton, timeout_s)
                say_at = math.inf
            await asyncio.sleep(0.2)

    async def look_for(self, names: Sequence[str]) -> None:
        """Look for variants of these names as well as k0, k1, …; returns when that was done.

        What they replace may be unloaded then: no stream is kept that holds it.
        """
        self._named = names
        for backend in self.backends.values():
            backend.named = names
            backend.renew_streams()
        await self._look()

    async def _look(self) -> None:
        backends = list(self.backends.values())
        await asyncio.gather(*(backend.discover() for backend in backends))
        await asyncio.gather(*(backend.refresh() for backend in backends))

    def watch(self) -> None:
        """Keep what is known of the servers fresh from now on, until `close`."""
        self._is_watching = True
        for target, backend in self.backends.items():
            self._watchers[target] = asyncio.create_task(backend.watch())
        self._follow()

    async def close(self) -> None:
        """Close all connections; calls in flight end."""
        if self._follower is not None:
            await _end(self._follower)
        for departure in list(self._departures):
            await _end(departure)
        for backend, _ in self._leaving.values():
            await backend.close()
        for watcher in self._watchers.values():
            await _end(watcher)
        for backend in self.backends.values():
            await backend.close()

    def _follow(self) -> None:
        """From now on, have those servers that the source reports."""
        if self._follower is None:
            self._follower = asyncio.create_task(self._source.watch(self._reconcile))

    def _reconcile(self, servers: Sequence[Server]) -> None:
        """Send nothing more to servers that aren't reported; they finish what they have begun."""
        targets = {server.target for server in servers}
        for server in servers:
            if server.target not in self.backends:
                log.info("%s has %s", self._triton, server.target)
                self._add(server)
        for target in self.backends.keys() - targets:
            log.info("%s no longer has %s", self._triton, target)
            self._remove(target)

    def _add(self, server: Server) -> None:
        backend = self._returned(server) or self._new(server)
        self.backends[server.target] = backend
        self._variants_changed()
        if self._is_watching:
            self._watchers[server.target] = asyncio.create_task(backend.watch())

    def _new(self, server: Server) -> Backend:
        suffix = f"@{server.target}" if self._source.is_many else ""
        backend = Backend(server.target, self.public_name, self._tls, suffix)
        backend.named = self._named
        backend.zone = server.zone
        backend.on_change = self._variants_changed
        backend.num_probed = self._num_probed
        return backend

    def _variants_changed(self) -> None:
        self._index = self._num_variants = None

    def _num_probed(self) -> int:
        """What is asked for a sign of life when nothing else comes from it."""
        if self._num_variants is None:
            counts = [len(backend.variants) for backend in self.backends.values()]
            self._num_variants = sum(counts)
        return max(self._num_variants, len(self.backends))

    def _returned(self, server: Server) -> Backend | None:
        """The same server that was to leave, with what it has in flight."""
        backend, leaving = self._leaving.pop(server.target, (None, None))
        if leaving is not None:
            leaving.cancel()
        return backend

    def _remove(self, target: str) -> None:
        backend, watcher = self.backends.pop(target), self._watchers.pop(target, None)
        self._variants_changed()
        if watcher is not None:
            watcher.cancel()
        departure = asyncio.create_task(self._leave(target, backend))
        self._leaving[target] = backend, departure
        self._departures.add(departure)
        departure.add_done_callback(self._departures.discard)

    async def _leave(self, target: str, backend: Backend) -> None:
        """Close a server's connection when its last answer is over."""
        until = time.monotonic() + LEAVE_S
        while _is_busy(backend) and time.monotonic() < until:
            await asyncio.sleep(LEAVE_POLL_S)
        del self._leaving[target]  # from here on it is closed, and can't come back
        await backend.close()

    async def _why_not_ready(self, timeout_s: float) -> str:
        within = f"within {timeout_s:g} s at {self._triton}"
        if not self.backends:
            problem = self._source.problem or "it has no server that is ready"
            return f"no Triton {within}: {problem}"
        try:
            await self.call("ServerLive", b"", CALL_TIMEOUT_S)
        except (grpc.aio.AioRpcError, TrtMtpError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            return (
                f"no Triton answers at {self._triton} within {timeout_s:g} s ({why}): "
                f"start it with `trt-mtp serve`, or name its gRPC address with --triton"
            )
        if self.variants:
            names = sorted({variant.model_name for variant in self.variants.values()})
            return f"no variant got ready {within}: {', '.join(names)}"
        return (
            f"Triton at {self._triton} has no model {self.public_name}_k<draft length>: "
            f"serve variants with `trt-mtp serve`, or name their public model with --model"
        )


def _is_busy(backend: Backend) -> bool:
    return any(v.num_running or v.num_on_trial for v in backend.variants.values())


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
