"""What the gateway says of the public model: one model made of all its variants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.failure import RpcError
from trt_mtp.controller.gateway.servers.backend import CALL_TIMEOUT_S
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.request import MAX_NAME_CHARS, PUBLIC_VERSION
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import VARIANT_ONLY
from trt_mtp.serve.kserve import parse_message

READY = "READY"
MAX_COUNT = 2**64 - 1  # of Triton's counters and times
# github.com/triton-inference-server/server, docs/protocol; `model_repository` stays for its index
REFUSED_EXTENSIONS = frozenset(
    {
        "model_repository(unload_dependents)",
        "system_shared_memory",
        "cuda_shared_memory",
        "trace",
        "logging",
    }
)

Answer = Callable[[bytes, float | None], Awaitable[bytes | None]]


class PublicModel:
    """Answers about the public model; None for a question that is Triton's to answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._name = pool.public_name
        self._one_by_one = asyncio.Lock()  # anybody may ask, and there may be a thousand servers

    def answers(self) -> dict[str, Answer]:
        """The RPCs that may be about the public model."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._ready,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }

    async def _server_live(self, raw: bytes, timeout_s: float | None) -> bytes:
        parse_message(pb.ServerLiveRequest, raw)
        return _bytes(pb.ServerLiveResponse(live=True))

    async def _server_ready(self, raw: bytes, timeout_s: float | None) -> bytes:
        parse_message(pb.ServerReadyRequest, raw)
        return _bytes(pb.ServerReadyResponse(ready=self._pool.is_ready))

    async def _server_metadata(self, raw: bytes, timeout_s: float | None) -> bytes:
        """Triton's own, less the extensions whose calls the gateway refuses."""
        parse_message(pb.ServerMetadataRequest, raw)
        answer = await self._pool.call("ServerMetadata", b"", _bounded(timeout_s))
        response = _told(pb.ServerMetadataResponse, answer)
        kept = [name for name in response.extensions if name not in REFUSED_EXTENSIONS]
        response.extensions[:] = kept
        return _bytes(response)

    async def _ready(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        request = parse_message(pb.ModelReadyRequest, raw)
        if request.name != self._name:
            return None
        is_ready = self._pool.is_ready and _is_public(request.version)
        return _bytes(pb.ModelReadyResponse(ready=is_ready))

    async def _metadata(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        if not self._is_about_it(parse_message(pb.ModelMetadataRequest, raw)):
            return None
        variant = self._first_ready()
        request = _bytes(pb.ModelMetadataRequest(name=variant.model_name))
        answer = await variant.backend.call("ModelMetadata", request, _bounded(timeout_s))
        response = _told(pb.ModelMetadataResponse, answer)
        response.name = self._name
        response.versions[:] = [PUBLIC_VERSION]
        _remove_variant_only(response.inputs, response.outputs)
        return _bytes(response)

    async def _config(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        if not self._is_about_it(parse_message(pb.ModelConfigRequest, raw)):
            return None
        variant = self._first_ready()
        request = _bytes(pb.ModelConfigRequest(name=variant.model_name))
        answer = await variant.backend.call("ModelConfig", request, _bounded(timeout_s))
        response = _told(pb.ModelConfigResponse, answer)
        response.config.name = self._name
        for group in response.config.instance_group:
            group.name = group.name.replace(variant.model_name, self._name, 1)
        _remove_variant_only(response.config.input, response.config.output)
        lengths = sorted({v.draft_length for v in self._pool.variants.values()})
        response.config.parameters.clear()  # they are one variant's
        response.config.parameters["draft_lengths"].string_value = ",".join(map(str, lengths))
        return _bytes(response)

    async def _statistics(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        """The public model's, and with no model named all others' after it, servers together."""
        request = parse_message(pb.ModelStatisticsRequest, raw)
        if request.name and not self._is_about_it(request):
            return None
        variants = {variant.model_name for variant in self._pool.variants.values()}
        total, others = pb.ModelStatistics(), dict[tuple[str, str], Any]()
        async with self._one_by_one:
            async for answer in self._ask_all("ModelStatistics", b"", timeout_s):
                for statistics in _told(pb.ModelStatisticsResponse, answer).model_stats:
                    if statistics.name in variants:
                        add_statistics(total, statistics)
                    known = others.setdefault(
                        (statistics.name, statistics.version),
                        pb.ModelStatistics(name=statistics.name, version=statistics.version),
                    )
                    add_statistics(known, statistics)
        total.name, total.version = self._name, PUBLIC_VERSION
        listed = [total, *(() if request.name else others.values())]
        return _bytes(pb.ModelStatisticsResponse(model_stats=listed))

    async def _index(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        """The public model, then what Triton lists, or the variants where it keeps that from us."""
        models = dict[tuple[str, str], Any]()
        async with self._one_by_one:
            async for answer in self._ask_all("RepositoryIndex", raw, timeout_s):
                for entry in _told(pb.RepositoryIndexResponse, answer).models:
                    _add_entry(models, entry)
        for variant in () if models else self._pool.variants.values():
            _add_entry(models, _index_entry(variant.model_name, variant.is_ready))
        listed = [_index_entry(self._name, self._pool.is_ready), *models.values()]
        if parse_message(pb.RepositoryIndexRequest, raw).ready:
            listed = [entry for entry in listed if entry.state == READY]
        return _bytes(pb.RepositoryIndexResponse(models=listed))

    async def _ask_all(
        self, method: str, raw: bytes, timeout_s: float | None
    ) -> AsyncIterator[bytes]:
        """The answers of all servers that give one, with turns for everybody else in between."""
        asked: list[asyncio.Task[bytes]] = []
        try:
            for backend in list(self._pool.backends.values()):
                asked.append(asyncio.create_task(backend.call(method, raw, _bounded(timeout_s))))
                await asyncio.sleep(0)
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(answer, bytes):
                    yield answer
                    await asyncio.sleep(0)
        finally:
            for task in asked:
                task.cancel()

    def _is_about_it(self, request: Any) -> bool:
        """True for a question about the public model; raises RpcError for another version."""
        if request.name == self._name and not _is_public(request.version):
            raise RpcError(
                grpc.StatusCode.NOT_FOUND,
                f"{self._name} has no version {request.version[:MAX_NAME_CHARS]!r}, only "
                f"{PUBLIC_VERSION}",
            )
        return bool(request.name == self._name)

    def _first_ready(self) -> Replica:
        for variant in self._pool.variants.values():
            if variant.is_ready:
                return variant
        raise RpcError(grpc.StatusCode.UNAVAILABLE, f"no variant of {self._name} is ready")


def _bounded(timeout_s: float | None) -> float:
    """A call's own limit, or ours."""
    return CALL_TIMEOUT_S if timeout_s is None else timeout_s


def _remove_variant_only(inputs: Any, outputs: Any) -> None:
    """Take out the tensors that are between the gateway or a rollout and a variant."""
    for tensors in (inputs, outputs):
        kept = [tensor for tensor in tensors if tensor.name not in VARIANT_ONLY]
        del tensors[:]
        tensors.extend(kept)


def _add_entry(models: dict[tuple[str, str], Any], entry: Any) -> None:
    """Add an entry of a server's index; of two servers' the ready one counts."""
    key = entry.name, entry.version
    if key not in models or entry.state == READY:
        models[key] = entry


def _index_entry(name: str, is_ready: bool) -> Any:
    return pb.RepositoryIndexResponse.ModelIndex(
        name=name, version=PUBLIC_VERSION, state="READY" if is_ready else "UNAVAILABLE"
    )


def _told(kind: Any, raw: bytes) -> Any:
    """A server's answer; raises RpcError for another one."""
    try:
        return parse_message(kind, raw)
    except InputError as error:
        raise RpcError(grpc.StatusCode.INTERNAL, f"of what Triton answers, {error}") from None


def _is_public(version: str) -> bool:
    return version in ("", PUBLIC_VERSION)


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def add_statistics(total: Any, part: Any) -> None:
    """Add one pb.ModelStatistics, or a message inside one, to another.

    Counts and times add up, the time of the last inference is the latest, the entries of a batch
    size or of a response add up with their like.
    """
    for field, value in part.ListFields():
        if field.name == "last_inference":
            total.last_inference = max(total.last_inference, value)
        elif field.name == "response_stats":
            for key, entry in value.items():
                add_statistics(total.response_stats[key], entry)
        elif field.name == "batch_stats":
            known = {entry.batch_size: entry for entry in total.batch_stats}
            for entry in value:
                if entry.batch_size not in known:
                    known[entry.batch_size] = total.batch_stats.add(batch_size=entry.batch_size)
                add_statistics(known[entry.batch_size], entry)
        elif field.message_type is not None and field.name != "memory_usage":
            part_of_total = getattr(total, field.name)
            part_of_total.SetInParent()  # also if all of it is zero
            add_statistics(part_of_total, value)
        elif isinstance(value, int) and field.name != "batch_size":
            setattr(total, field.name, min(getattr(total, field.name) + value, MAX_COUNT))
