"""All Triton servers behind the gateway: named ones, or whatever a DNS name stands for just now."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Mapping, Sequence

import grpc

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.gateway.addresses import resolve
from trt_mtp.controller.gateway.backend import CALL_TIMEOUT_S, Backend, Hosted
from trt_mtp.controller.gateway.upstream import Metadata
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
DNS = "dns:"


class Pool:
    """The servers and their variants. Make it inside the event loop that uses it."""

    def __init__(self, triton: str, public_name: str, tls: TlsFiles | None = None) -> None:
        """`triton` lists HOST:PORT with commas between them, or is one dns:NAME:PORT.

        Raises InputError for anything else, and for TLS files that can't be used.
        """
        self.public_name = public_name
        self.backends: dict[str, Backend] = {}  # by HOST:PORT
        self._triton = triton
        self._tls = tls
        self._named: Sequence[str] = ()
        self._name, targets = _parse(triton)
        self._is_many = bool(self._name) or len(targets) > 1
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._resolver: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._dns_problem = ""  # that was logged
        self._is_watching = False
        for target in targets:
            self._add(target)

    @property
    def variants(self) -> Mapping[str, Hosted]:
        """All variants on all servers by key, in order of draft length."""
        if not self._is_many:
            return next(iter(self.backends.values())).variants
        found = [v for backend in self.backends.values() for v in backend.variants.values()]
        found.sort(key=lambda variant: variant.draft_length)
        return {variant.key: variant for variant in found}

    @property
    def is_ready(self) -> bool:
        """True while any variant says that it is ready."""
        return any(
            v.is_ready for backend in self.backends.values() for v in backend.variants.values()
        )

    def states(self, variants: Mapping[str, Hosted]) -> dict[str, VariantState]:
        """What a policy sees of `variants`, by key.

        When none of those that are ready may be sent a request, all of them count as healthy: a
        doubtful variant is better than none.
        """
        now_s = time.monotonic()
        healthy = {key for key, variant in variants.items() if variant.health.can_take(now_s)}
        healthy = healthy or {key for key, variant in variants.items() if variant.is_ready}
        return {key: variant.state(key in healthy) for key, variant in variants.items()}

    def first_live(self) -> Backend:
        """The server for what is not about the public model: the first that is alive.

        Raises TrtMtpError while a DNS name has no address.
        """
        for backend in self.backends.values():
            if backend.is_live:
                return backend
        for backend in self.backends.values():
            return backend
        raise TrtMtpError(f"no Triton server: {self._triton} has no address")

    async def call(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata = ()
    ) -> bytes:
        """One unary RPC to the first server that is alive; raises AioRpcError, TrtMtpError."""
        return await self.first_live().call(method, request, timeout_s, metadata)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the first ready variant; raises TrtMtpError when none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            await self._resolve()
            await self._look()
            if self.is_ready:
                return
            if time.monotonic() > deadline:
                raise TrtMtpError(await self._why_not_ready(timeout_s))
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
        if self._name:
            self._resolver = asyncio.create_task(self._keep_resolving())

    async def close(self) -> None:
        """Close all connections; calls in flight end."""
        if self._resolver is not None:
            await _end(self._resolver)
        for task in list(self._leaving):
            await _end(task)
        for watcher in self._watchers.values():
            await _end(watcher)
        for backend in self.backends.values():
            await backend.close()

    def _add(self, target: str) -> None:
        suffix = f"@{target}" if self._is_many else ""
        backend = Backend(target, self.public_name, self._tls, suffix)
        backend.named = self._named
        self.backends[target] = backend
        if self._is_watching:
            self._watchers[target] = asyncio.create_task(backend.watch())

    async def _remove(self, target: str) -> Backend:
        """Send a server nothing more."""
        backend, watcher = self.backends.pop(target), self._watchers.pop(target, None)
        if watcher is not None:
            await _end(watcher)
        return backend

    async def _leave(self, backend: Backend) -> None:
        """Close a server's connection when its last answer is over."""
        while any(variant.num_running for variant in backend.variants.values()):
            await asyncio.sleep(RESOLVE_S)
        await backend.close()

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(RESOLVE_S)
            await self._resolve()

    async def _resolve(self) -> None:
        """Follow the DNS name; a server that it no longer has finishes what it has begun."""
        if not self._name:
            return
        host, _, port = self._name.rpartition(":")
        try:
            targets = await resolve(host, int(port))
        except OSError as error:  # what was found before stays
            if str(error) != self._dns_problem:
                self._dns_problem = str(error)
                log.warning("%s can't be resolved: %s", host, error.strerror or error)
            return
        self._dns_problem = ""
        for target in targets:
            if target not in self.backends:
                log.info("%s has %s", host, target)
                self._add(target)
        for target in self.backends.keys() - set(targets):
            log.info("%s no longer has %s", host, target)
            leaving = asyncio.create_task(self._leave(await self._remove(target)))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _why_not_ready(self, timeout_s: float) -> str:
        within = f"within {timeout_s:g} s at {self._triton}"
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


def _parse(triton: str) -> tuple[str, list[str]]:
    """The NAME:PORT to resolve, or an empty text and the listed servers."""
    targets = [target.strip() for target in triton.split(",") if target.strip()]
    names = [target.removeprefix(DNS) for target in targets if target.startswith(DNS)]
    wrong = [t for t in targets if not re.fullmatch(r"(dns:)?[^:/\s][^/\s]*:\d{1,5}", t)]
    if wrong or not targets or (names and len(targets) > 1):
        shown = wrong[0] if wrong else triton
        raise InputError(
            f"--triton is {shown!r}: expected HOST:PORT, several with commas between them, "
            f"or one dns:NAME:PORT"
        )
    return (names[0], []) if names else ("", list(dict.fromkeys(targets)))


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
