"""Probes by grpc.health.v1: one model made of all, each variant, and who watches is told."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway_fixtures import GatewayThread, running_gateway
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.access.stream_counts import StreamCounts
from trt_mtp.controller.gateway.health_service import (
    NOT_SERVING,
    SERVICE_UNKNOWN,
    SERVING,
    HealthService,
    service_name,
)
from trt_mtp.errors import InputError
from trt_mtp.serve.triton import TritonServer

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A gateway with the token "secret"."""
    path: Path = tmp_path_factory.mktemp("health") / "tenants.yaml"
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    path.write_text(f"schema_version: 1\ntenants:\n- name: us\n  token_sha256: [{digest}]\n")
    path.chmod(0o600)
    with running_gateway(doubles.grpc_url, access=AccessConfig(tokens=path)) as thread:
        yield thread


def request_of(service: str) -> bytes:
    """A HealthCheckRequest."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def check(url: str, service: str, token: str = "secret") -> bytes:
    """A HealthCheckResponse."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        return bytes(call(request_of(service), metadata=metadata, timeout=TIMEOUT_S))


def test_the_answer_is_tritons(gateway: GatewayThread, doubles: TritonServer) -> None:
    """A probe of the whole server gets byte for byte what Triton's own service says."""
    assert check(gateway.gateway.address, "") == check(doubles.grpc_url, "") == SERVING


@pytest.mark.parametrize(
    "service",
    ["qwen_mtp", "qwen_mtp_k3", "inference.GRPCInferenceService", "grpc.health.v1.Health"],
)
def test_models_and_services_have_a_status(gateway: GatewayThread, service: str) -> None:
    """The public model's, each variant's, and the names that probes give to a server."""
    assert check(gateway.gateway.address, service) == SERVING


def test_an_unknown_name_is_not_found(gateway: GatewayThread) -> None:
    """As the protocol asks for."""
    with pytest.raises(grpc.RpcError) as refused:
        check(gateway.gateway.address, "qwen_mtp_k9")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'qwen_mtp_k9' is neither a model here nor" in refused.value.details()


def test_a_probe_needs_no_token(gateway: GatewayThread) -> None:
    """Without one its message stays unread, and the status is the gateway's; so it is watched."""
    assert check(gateway.gateway.address, "qwen_mtp_k9", token="") == SERVING
    with grpc.insecure_channel(gateway.gateway.address) as channel:
        call = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=TIMEOUT_S)
        assert next(call) == SERVING
        call.cancel()


def test_who_watches_is_told_of_changes() -> None:
    """The status at once, each change after it, and at the gateway's end that it serves no more."""

    async def scenario() -> None:
        variant = SimpleNamespace(model_name="m_k3", is_ready=False)
        pool: Any = SimpleNamespace(public_name="m", is_ready=True, variants={"k3": variant})
        service = HealthService(pool, lambda _: None, StreamCounts(1), StreamCounts(1))
        service.look()
        unknown = service.watch("m_k5")
        assert await anext(unknown) == SERVICE_UNKNOWN  # and it may come
        told = service.watch("m_k3")
        assert await anext(told) == NOT_SERVING
        variant.is_ready = True
        service.look()
        assert await anext(told) == SERVING
        pool.variants["k5"] = SimpleNamespace(model_name="m_k5", is_ready=True)
        service.look()
        assert await anext(unknown) == SERVING
        service.drain()
        for watched in (told, unknown):
            assert [status async for status in watched] == [NOT_SERVING]
        assert service.check("") == NOT_SERVING

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    """Anything is a name or an InputError."""
    with contextlib.suppress(InputError):
        assert isinstance(service_name(raw), str)
