"""One Triton server behind the gateway: its variants, whether they are ready, and calls to it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.answers import Answers
from trt_mtp.controller.gateway.servers.load import LoadMeter
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.gateway.servers.triton_channel import TritonChannel
from trt_mtp.controller.gateway.servers.upstream import Metadata, Upstream
from trt_mtp.controller.gateway.servers.winding_down import Rest, read_out, wind_down
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 1.0
DISCOVERY_S = 10.0
PROBES_PER_S = 30.0  # of all servers together: a gateway with a thousand asks each less often
NAMES_PER_S = 15.0  # likewise, of variants that a server may have got since
JITTER = 0.25  # of the time between probes, both ways: gateways don't ask in step
MAX_DRAFT_LENGTH = 16
CALL_TIMEOUT_S = 5.0
CLOSE_S = 5.0
SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # no answer of its own
MAX_IDLE_STREAMS = 256  # kept open, so that a request needs no new one


class Backend:
    """A Triton server. Make it inside the event loop that uses it."""

    def __init__(
        self, target: str, public_name: str, tls: TlsFiles | None = None, key_suffix: str = ""
    ) -> None:
        """Connects when it is first asked; `key_suffix` tells its variants from other servers'."""
        self.target = target  # HOST:PORT
        self.public_name = public_name
        self.zone = ""  # where it runs, if that is known
        self.on_change: Callable[[], None] = lambda: None  # told when its variants are others
        self.num_probed: Callable[[], int] = lambda: 1  # variants of all servers together
        self._variants: dict[str, Replica] = {}
        self.named: Sequence[str] = ()  # variants to look for beside k0, k1, …
        self.is_live = False
        self.heard_at = 0.0  # monotonic time at which it last said that it is alive
        self.meter = LoadMeter()  # of all its variants
        self._key_suffix = key_suffix
        self._channel = TritonChannel(target, tls)
        self._answers = Answers(target)
        self._idle: list[Upstream] = []
        self._background: set[asyncio.Task[Any]] = set()  # each ends by itself
        self._generation = 0  # of the streams that are kept
        self._suspected = asyncio.Event()

    @property
    def variants(self) -> dict[str, Replica]:
        """Its variants by name, in order of draft length; replaced, never changed."""
        return self._variants

    @variants.setter
    def variants(self, variants: dict[str, Replica]) -> None:
        self._variants = variants
        self.on_change()

    async def call(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata = ()
    ) -> bytes:
        """One unary RPC, bytes in and out; raises grpc.aio.AioRpcError."""
        return bytes(
            await self._channel.unary[method](request, timeout=timeout_s, metadata=metadata)
        )

    def take_stream(self, metadata: Metadata = ()) -> Upstream:
        """A stream for one request: an idle one, or a fresh one where there is metadata to send."""
        while self._idle and not metadata:
            upstream = self._idle.pop()
            if upstream.is_open:
                return upstream
        call = self._channel.stream(metadata=metadata)
        return Upstream(call, is_shared=not metadata, generation=self._generation)

    def open_stream(self, metadata: Metadata) -> Upstream:
        """A stream for one request to another model."""
        return Upstream(self._channel.stream(metadata=metadata), is_shared=False)

    def abandon(
        self, upstream: Upstream, variant: Replica, request_id: str
    ) -> "asyncio.Task[Rest]":
        """Nobody wants the rest of an answer: the task ends when nothing of it is in flight."""
        return self._in_background(wind_down(self, upstream, variant, request_id))

    def read_out(self, upstream: Upstream) -> None:
        """Read a stream of `open_stream` to its end, whoever still wants it."""
        self._in_background(read_out(self, upstream))

    def drop(self, upstream: Upstream) -> None:
        """Give up a stream that stays silent; the server is not trusted before it answers again."""
        log.warning("a stream to Triton at %s is silent and given up", self.target)
        self._channel.drop(upstream.call)
        self._generation += 1  # what is idle on that connection isn't used again
        self._close_idle()
        self.suspect()

    def give_back(self, upstream: Upstream) -> None:
        """Take back a stream on which nothing is in flight."""
        is_current = upstream.generation == self._generation
        if (
            upstream.is_shared
            and is_current
            and len(self._idle) < MAX_IDLE_STREAMS
            and self.is_live
        ):
            self._idle.append(upstream)
        else:
            self._end(upstream)

    def renew_streams(self) -> None:
        """End every stream that is open now, as soon as nothing is in flight on it.

        Triton 2.51 keeps a model that it unloads until all streams have ended on which the model
        ever answered.
        """
        self._generation += 1
        self._close_idle()

    def suspect(self) -> None:
        """A call failed on the way: send nothing until the variants are known to be ready."""
        for variant in self.variants.values():
            variant.health.suspect()
        self.look_soon()

    def look_soon(self) -> None:
        """Something may be wrong: ask the server about its variants now."""
        self._suspected.set()

    def _close_idle(self) -> None:
        while self._idle:
            self._end(self._idle.pop())

    def _end(self, upstream: Upstream) -> None:
        self._in_background(upstream.end())

    def _in_background(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def load(self, now_s: float) -> int:
        """Requests that are believed to be in flight on all its variants."""
        return sum([variant.load(now_s) for variant in self._variants.values()])

    async def refresh(self, silent_since: float | None = None) -> None:
        """Ask Triton whether it is alive and which of its variants are ready.

        With `silent_since`, a monotonic time, only variants that are not ready or that sent
        nothing since then are asked for: what answers requests is ready.
        """
        if self._channel.renew():
            self._close_idle()
        asked = [
            variant
            for variant in self.variants.values()
            if silent_since is None
            or not variant.is_ready
            or variant.health.heard_at < silent_since
        ]
        if not asked and self.variants:
            return
        answers = await asyncio.gather(*(self._is_ready(variant) for variant in asked))
        is_heard = any(answer is not None for answer in answers)
        self.is_live = is_heard or await self._is_alive()
        for variant, answer in zip(asked, answers, strict=True):
            is_ready = bool(answer)
            if is_ready != variant.is_ready:
                state = "ready" if is_ready else "not ready"
                log.info("%s at %s is %s", variant.model_name, self.target, state)
            variant.health.poll(is_ready, time.monotonic())
        if not any(variant.is_ready for variant in self.variants.values()):
            self._close_idle()  # Triton waits for streams before it ends

    async def discover(self) -> None:
        """Find variants that are new.

        Each possible name is asked for: the index of models is a management call, which Triton
        may keep from us.
        """
        known = {variant.model_name for variant in self.variants.values()}
        variants = [*(f"k{length}" for length in range(MAX_DRAFT_LENGTH + 1)), *self.named]
        names = dict.fromkeys(f"{self.public_name}_{variant}" for variant in variants)
        found = await asyncio.gather(
            *(self._read_variant(name) for name in names if name not in known)
        )
        fresh = [variant for variant in found if variant and variant.name not in self.variants]
        hosted = [*self.variants.values(), *fresh]
        hosted.sort(key=lambda variant: (variant.draft_length, variant.name))
        if fresh:
            self.variants = {variant.name: variant for variant in hosted}

    async def watch(self) -> None:
        """Keep what is known of the variants fresh, for ever; looks at once after a failed call."""
        # servers that are named together aren't looked through together
        next_discovery = time.monotonic() + self._discovery_s() * DRAWS.random()
        silent_since: float | None = None
        while True:
            await self.refresh(silent_since)
            if self.is_live and (not self.variants or time.monotonic() >= next_discovery):
                await self.discover()
                next_discovery = time.monotonic() + self._discovery_s() * _jittered()
            self._suspected.clear()
            await asyncio.sleep(0.1)  # a storm of failures is one look, not one for each
            silent_since = time.monotonic()
            try:
                async with asyncio.timeout(self._probe_s() * _jittered()):
                    await self._suspected.wait()
                silent_since = None
            except TimeoutError:
                pass

    def _probe_s(self) -> float:
        """Seconds between probes of a variant that sends nothing, by how many there are."""
        return max(POLL_S, self.num_probed() / PROBES_PER_S)

    def _discovery_s(self) -> float:
        """Seconds between looks for new variants, were all servers like this one."""
        num_known = len(self.variants)
        num_names = MAX_DRAFT_LENGTH + 1 + len(self.named) - num_known
        num_servers = self.num_probed() / max(num_known, 1)
        return max(DISCOVERY_S, num_servers * num_names / NAMES_PER_S)

    async def close(self) -> None:
        """Close the connection, after CLOSE_S at most for streams that come to their end."""
        self._close_idle()
        if self._background:
            await asyncio.wait(self._background, timeout=CLOSE_S)
        for task in self._background:
            task.cancel()
        await self._channel.close()

    async def _is_alive(self) -> bool:
        try:
            raw = await self.call("ServerLive", b"", CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        self.heard_at = time.monotonic()
        return self._answers.is_live(raw)

    async def _is_ready(self, variant: Replica) -> bool | None:
        """What the server says; None if it says nothing."""
        request = pb.ModelReadyRequest(name=variant.model_name).SerializeToString()
        try:
            raw = await self.call("ModelReady", request, CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return None if error.code() in SILENT else False
        self.heard_at = time.monotonic()
        return self._answers.is_ready(raw)

    async def _read_variant(self, model_name: str) -> Replica | None:
        request = pb.ModelConfigRequest(name=model_name).SerializeToString()
        try:
            raw = await self.call("ModelConfig", request, CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None  # not there, or not yet
        known = self._answers.described(raw, model_name, self.public_name)
        if known is None:
            return None
        return Replica(backend=self, key=known["name"] + self._key_suffix, **known)


def _jittered() -> float:
    return 1 + JITTER * (2 * DRAWS.random() - 1)
