"""One Triton server behind the gateway: its variants, whether they are ready, and calls to it."""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.gateway.health import Health
from trt_mtp.controller.gateway.triton_channel import TritonChannel
from trt_mtp.controller.gateway.upstream import Metadata, Upstream
from trt_mtp.serve.repository import MEASURED_ON, SCHEDULE
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

POLL_S = 1.0
DISCOVERY_S = 10.0
MAX_DRAFT_LENGTH = 16
CALL_TIMEOUT_S = 5.0
DEFAULT_MAX_BATCH_SIZE = 8  # of a variant whose configuration doesn't say
DEFAULT_MAX_SEQ_LEN = 2_048
MAX_IDLE_STREAMS = 256  # kept open, so that a request needs no new one


@dataclass(slots=True, eq=False)
class Hosted:
    """A variant model on a Triton server, and what it is doing now."""

    backend: "Backend"
    key: str  # k3, or k3@HOST:PORT where there is more than one server
    name: str  # k3
    model_name: str  # qwen_mtp_k3
    draft_length: int
    max_batch_size: int
    max_seq_len: int
    fingerprint: str
    measured_on: dict[str, str]  # the parts behind the fingerprint
    inputs: frozenset[str]
    outputs: frozenset[str]
    schedule: BatchSchedule | None = None  # of draft lengths by batch
    health: Health = field(default_factory=Health)
    num_running: int = 0
    num_elsewhere: int = 0  # the same through other workers of this gateway
    prefill_s_per_token: float | None = None  # until the first token, as it was seen

    @property
    def is_ready(self) -> bool:
        """What its server last said, unless a connection failed since then."""
        return self.health.is_ready

    @property
    def can_continue(self) -> bool:
        """True for one that goes on with an answer which another began."""
        return "emitted_ids" in self.inputs and "output_ids" in self.outputs

    def state(self, is_healthy: bool) -> VariantState:
        """What a policy sees of it."""
        num_running = self.num_running + self.num_elsewhere
        return VariantState(
            name=self.key,
            draft_length=self.draft_length,
            is_healthy=is_healthy,
            num_running=num_running,
            max_batch_size=self.max_batch_size,
            max_seq_len=self.max_seq_len,
            device=self.backend.target,
            is_full=num_running >= self.max_batch_size,
            schedule=self.schedule,
        )


class Backend:
    """A Triton server. Make it inside the event loop that uses it."""

    def __init__(
        self, target: str, public_name: str, tls: TlsFiles | None = None, key_suffix: str = ""
    ) -> None:
        """Connects when it is first asked; `key_suffix` tells its variants from other servers'."""
        self.target = target  # HOST:PORT
        self.public_name = public_name
        self.variants: dict[str, Hosted] = {}  # by name, in order of draft length
        self.named: Sequence[str] = ()  # variants to look for beside k0, k1, …
        self.is_live = False
        self._key_suffix = key_suffix
        self._channel = TritonChannel(target, tls)
        self._idle: list[Upstream] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._generation = 0  # of the streams that are kept
        self._suspected = asyncio.Event()

    async def call(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata = ()
    ) -> bytes:
        """One unary RPC, bytes in and out; raises grpc.aio.AioRpcError."""
        return bytes(
            await self._channel.unary[method](request, timeout=timeout_s, metadata=metadata)
        )

    def open_stream(self, timeout_s: float | None, metadata: Metadata = ()) -> Any:
        """A ModelStreamInfer call, bytes in and out."""
        return self._channel.stream(timeout=timeout_s, metadata=metadata)

    def lease(self, metadata: Metadata) -> Upstream:
        """A stream for one request: an idle one, or a fresh one where there is metadata to send."""
        while self._idle and not metadata:
            upstream = self._idle.pop()
            if upstream.is_open:
                return upstream
        call = self._channel.stream(metadata=metadata)
        return Upstream(call, is_shared=not metadata, generation=self._generation)

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
        self._suspected.set()

    def _close_idle(self) -> None:
        while self._idle:
            self._end(self._idle.pop())

    def _end(self, upstream: Upstream) -> None:
        ending = asyncio.create_task(upstream.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def refresh(self) -> None:
        """Ask Triton whether it is alive and which of its variants are ready."""
        if self._channel.renew():
            self._close_idle()
        known = list(self.variants.values())
        self.is_live, *ready = await asyncio.gather(
            self._is_alive(), *(self._is_ready(variant) for variant in known)
        )
        for variant, is_ready in zip(known, ready, strict=True):
            if is_ready != variant.is_ready:
                log.info("%s is %s", variant.model_name, "ready" if is_ready else "not ready")
            variant.health.poll(is_ready, time.monotonic())
        if not any(ready):
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
        self.variants = {variant.name: variant for variant in hosted}

    async def watch(self) -> None:
        """Keep what is known of the variants fresh, for ever; looks at once after a failed call."""
        next_discovery = 0.0
        while True:
            await self.refresh()
            if self.is_live and (not self.variants or time.monotonic() >= next_discovery):
                await self.discover()
                next_discovery = time.monotonic() + DISCOVERY_S
            self._suspected.clear()
            await asyncio.sleep(0.1)  # a storm of failures is one look, not one for each
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), POLL_S)

    async def close(self) -> None:
        """Close the connection; calls in flight end."""
        self._close_idle()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._channel.close()

    async def _is_alive(self) -> bool:
        try:
            raw = await self.call("ServerLive", b"", CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(pb.ServerLiveResponse.FromString(raw).live)

    async def _is_ready(self, variant: Hosted) -> bool:
        request = pb.ModelReadyRequest(name=variant.model_name).SerializeToString()
        try:
            raw = await self.call("ModelReady", request, CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(pb.ModelReadyResponse.FromString(raw).ready)

    async def _read_variant(self, model_name: str) -> Hosted | None:
        request = pb.ModelConfigRequest(name=model_name).SerializeToString()
        try:
            raw = await self.call("ModelConfig", request, CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None  # not there, or not yet
        config = pb.ModelConfigResponse.FromString(raw).config
        return _hosted(config, self, self._key_suffix)


def _length_in(name: str) -> int:
    """The draft length that a variant's name begins with, as in `k3`; 0 where it has none."""
    found = re.match(r"k(\d{1,3})", name)
    return int(found[1]) if found else 0


def _hosted(config: Any, backend: Backend, key_suffix: str) -> Hosted:
    """A variant from its pb.ModelConfig; a parameter that is missing or no number has a default."""
    texts = {key: value.string_value for key, value in config.parameters.items()}
    suffix = config.name.removeprefix(f"{backend.public_name}_")
    name = texts.get("variant") or suffix

    def number(key: str, default: int) -> int:
        text = texts.get(key, "")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else default

    return Hosted(
        backend=backend,
        key=name + key_suffix,
        name=name,
        model_name=config.name,
        draft_length=number("draft_length", _length_in(suffix)),
        max_batch_size=number("max_batch_size", DEFAULT_MAX_BATCH_SIZE),
        max_seq_len=number("max_seq_len", DEFAULT_MAX_SEQ_LEN),
        fingerprint=texts.get("fingerprint", ""),
        measured_on=_measured_on(texts.get(MEASURED_ON, "")),
        inputs=frozenset(tensor.name for tensor in config.input),
        outputs=frozenset(tensor.name for tensor in config.output),
        schedule=BatchSchedule.from_json(texts.get(SCHEDULE, "")),
    )


def _measured_on(text: str) -> dict[str, str]:
    """The parts in a model's parameter; none where it isn't a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(part) for key, part in value.items()} if isinstance(value, dict) else {}
