"""One Triton server behind the gateway: its variants, whether they are ready, and calls to it."""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.triton_channel import TritonChannel
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.repository import MEASURED_ON
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

POLL_S = 1.0
DISCOVERY_S = 10.0
MAX_DRAFT_LENGTH = 16
CALL_TIMEOUT_S = 5.0
DEFAULT_MAX_BATCH_SIZE = 8  # of a variant whose configuration doesn't say
DEFAULT_MAX_SEQ_LEN = 2_048

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Hosted:
    """A variant model on a Triton server, and what it is doing now."""

    name: str  # k3
    model_name: str  # qwen_mtp_k3
    draft_length: int
    max_batch_size: int
    max_seq_len: int
    fingerprint: str
    measured_on: dict[str, str]  # the parts behind the fingerprint
    outputs: frozenset[str]
    is_ready: bool = False
    num_running: int = 0

    def state(self) -> VariantState:
        """What a policy sees of it."""
        return VariantState(
            name=self.name,
            draft_length=self.draft_length,
            is_healthy=self.is_ready,
            num_running=self.num_running,
            max_batch_size=self.max_batch_size,
            max_seq_len=self.max_seq_len,
        )


class Backend:
    """A Triton server. Make it inside the event loop that uses it."""

    def __init__(self, target: str, public_name: str, tls: TlsFiles | None = None) -> None:
        self.target = target  # HOST:PORT
        self.public_name = public_name
        self.variants: dict[str, Hosted] = {}  # by name, in order of draft length
        self.named: Sequence[str] = ()  # variants to look for beside k0, k1, …
        self._channel = TritonChannel(target, tls)
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

    def suspect(self, names: Iterable[str]) -> None:
        """A call to these variants failed on the way: send them nothing until they say ready."""
        for name in names:
            if name in self.variants:
                self.variants[name].is_ready = False
        self._suspected.set()

    async def refresh(self) -> None:
        """Ask Triton which of its variants are ready."""
        self._channel.renew()
        known = list(self.variants.values())
        ready = await asyncio.gather(*(self._is_ready(variant) for variant in known))
        for variant, is_ready in zip(known, ready, strict=True):
            if is_ready != variant.is_ready:
                log.info("%s is %s", variant.model_name, "ready" if is_ready else "not ready")
            variant.is_ready = is_ready

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
            if time.monotonic() >= next_discovery:
                await self.discover()
                next_discovery = time.monotonic() + DISCOVERY_S
            await self.refresh()
            self._suspected.clear()
            await asyncio.sleep(0.1)  # a storm of failures is one look, not one for each
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), POLL_S)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the first ready variant; raises TrtMtpError when none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            await self.discover()
            await self.refresh()
            if any(variant.is_ready for variant in self.variants.values()):
                return
            if time.monotonic() > deadline:
                raise TrtMtpError(await self._why_not_ready(timeout_s))
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close the connection; calls in flight end."""
        await self._channel.close()

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
        return _hosted(pb.ModelConfigResponse.FromString(raw).config, self.public_name)

    async def _why_not_ready(self, timeout_s: float) -> str:
        try:
            await self.call("ServerLive", b"", CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return (
                f"no Triton answers at {self.target} within {timeout_s:g} s ({error.details()}): "
                f"start it with `trt-mtp serve`, or name its gRPC address with --triton"
            )
        if self.variants:
            names = ", ".join(variant.model_name for variant in self.variants.values())
            return f"no variant got ready within {timeout_s:g} s at {self.target}: {names}"
        return (
            f"Triton at {self.target} has no model {self.public_name}_k<draft length>: "
            f"serve variants with `trt-mtp serve`, or name their public model with --model"
        )


def _length_in(name: str) -> int:
    """The draft length that a variant's name begins with, as in `k3`; 0 where it has none."""
    found = re.match(r"k(\d{1,3})", name)
    return int(found[1]) if found else 0


def _hosted(config: Any, public_name: str) -> Hosted:
    """A variant from its pb.ModelConfig; a parameter that is missing or no number has a default."""
    texts = {key: value.string_value for key, value in config.parameters.items()}
    suffix = config.name.removeprefix(f"{public_name}_")

    def number(key: str, default: int) -> int:
        text = texts.get(key, "")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else default

    return Hosted(
        name=texts.get("variant") or suffix,
        model_name=config.name,
        draft_length=number("draft_length", _length_in(suffix)),
        max_batch_size=number("max_batch_size", DEFAULT_MAX_BATCH_SIZE),
        max_seq_len=number("max_seq_len", DEFAULT_MAX_SEQ_LEN),
        fingerprint=texts.get("fingerprint", ""),
        measured_on=_measured_on(texts.get(MEASURED_ON, "")),
        outputs=frozenset(output.name for output in config.output),
    )


def _measured_on(text: str) -> dict[str, str]:
    """The parts in a model's parameter; none where it isn't a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(part) for key, part in value.items()} if isinstance(value, dict) else {}
