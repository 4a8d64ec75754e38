"""What the gateway says of the public model: one model made of all its variants."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.backend import Backend, Hosted
from trt_mtp.controller.relay import RpcFailure

Answer = Callable[[bytes, float | None], Awaitable[bytes | None]]


class PublicModel:
    """Answers about the public model; None for a question that is Triton's to answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._name = backend.public_name

    def answers(self) -> dict[str, Answer]:
        """The RPCs that may be about the public model."""
        return {
            "ModelReady": self._ready,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }

    async def _ready(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        if _named(pb.ModelReadyRequest, raw) != self._name:
            return None
        is_ready = any(variant.is_ready for variant in self._backend.variants.values())
        return _bytes(pb.ModelReadyResponse(ready=is_ready))

    async def _metadata(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        if _named(pb.ModelMetadataRequest, raw) != self._name:
            return None
        request = pb.ModelMetadataRequest(name=self._first_ready().model_name)
        response = await self._ask("ModelMetadata", request, pb.ModelMetadataResponse, timeout_s)
        response.name = self._name
        return _bytes(response)

    async def _config(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        if _named(pb.ModelConfigRequest, raw) != self._name:
            return None
        request = pb.ModelConfigRequest(name=self._first_ready().model_name)
        response = await self._ask("ModelConfig", request, pb.ModelConfigResponse, timeout_s)
        response.config.name = self._name
        lengths = sorted({v.draft_length for v in self._backend.variants.values()})
        response.config.parameters.clear()  # they are one variant's
        response.config.parameters["draft_lengths"].string_value = ",".join(map(str, lengths))
        return _bytes(response)

    async def _statistics(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        name = _named(pb.ModelStatisticsRequest, raw)
        if name not in (self._name, ""):
            return None
        everything = await self._ask(
            "ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse, timeout_s
        )
        variants = {variant.model_name for variant in self._backend.variants.values()}
        total = pb.ModelStatistics()
        for statistics in everything.model_stats:
            if statistics.name in variants:
                add_statistics(total, statistics)
        total.name, total.version = self._name, "1"
        others = everything.model_stats if name == "" else ()
        return _bytes(pb.ModelStatisticsResponse(model_stats=[total, *others]))

    async def _index(self, raw: bytes, timeout_s: float | None) -> bytes | None:
        """The public model, then what Triton lists, or the variants where it keeps that from us."""
        is_ready = any(variant.is_ready for variant in self._backend.variants.values())
        own = _index_entry(self._name, is_ready)
        try:
            answer = await self._backend.call("RepositoryIndex", raw, timeout_s)
            models: Iterable[Any] = pb.RepositoryIndexResponse.FromString(answer).models
        except grpc.aio.AioRpcError:
            variants = self._backend.variants.values()
            models = [_index_entry(variant.model_name, variant.is_ready) for variant in variants]
        if _parsed(pb.RepositoryIndexRequest, raw).ready:
            models = [model for model in models if model.state == "READY"]
            return _bytes(pb.RepositoryIndexResponse(models=[own] * is_ready + models))
        return _bytes(pb.RepositoryIndexResponse(models=[own, *models]))

    async def _ask(self, method: str, request: Any, response: Any, timeout_s: float | None) -> Any:
        raw = await self._backend.call(method, request.SerializeToString(), timeout_s)
        return response.FromString(raw)

    def _first_ready(self) -> Hosted:
        for variant in self._backend.variants.values():
            if variant.is_ready:
                return variant
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE, f"no variant of {self._name} is ready")


def _index_entry(name: str, is_ready: bool) -> Any:
    return pb.RepositoryIndexResponse.ModelIndex(
        name=name, version="1", state="READY" if is_ready else "UNAVAILABLE"
    )


def _parsed(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except Exception:  # protobuf's DecodeError; its module differs between implementations
        raise RpcFailure(
            grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a {kind.DESCRIPTOR.name}"
        ) from None


def _named(kind: Any, raw: bytes) -> str:
    return str(_parsed(kind, raw).name)


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
            for entry in value:
                add_statistics(_same_batch(total.batch_stats, entry.batch_size), entry)
        elif field.message_type is not None and field.name != "memory_usage":
            add_statistics(getattr(total, field.name), value)
        elif isinstance(value, int) and field.name != "batch_size":
            setattr(total, field.name, getattr(total, field.name) + value)


def _same_batch(entries: Any, batch_size: int) -> Any:
    for entry in entries:
        if entry.batch_size == batch_size:
            return entry
    return entries.add(batch_size=batch_size)
