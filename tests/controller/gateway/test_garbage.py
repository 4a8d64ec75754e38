"""Requests that failed are gone at once, and don't wait for the garbage collector."""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

import trt_mtp
from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
)
from tests.http_client import ask
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.serve.kserve import SERVICE, InferRequest
from trt_mtp.serve.triton import TritonServer

HELD = (InferenceCall, InferRequest)
OWN = Path(trt_mtp.__file__).parent
BIG = 300_000  # bytes of a request
FILLER = "a" * BIG


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with all doors."""
    with running_gateway(doubles.grpc_url, http_port=0, failover_wait_s=0.1) as thread:
        yield thread


def cut_off() -> bytes:
    """A request that Triton refuses: its text is shorter than it says."""
    request = script_request(filler=FILLER, streaming=False)
    request.raw_input_contents[0] = (2 * BIG).to_bytes(4, "little") + FILLER.encode()
    return bytes(request.SerializeToString())


def of_script(**script: Any) -> bytes:
    """A request that a double may not answer."""
    return bytes(script_request(filler=FILLER, streaming=False, **script).SerializeToString())


REQUESTS = {
    "too many fields": b"\x0a\x08qwen_mtp" + b"\x2a\x00" * (BIG // 2),
    "no message": b"\x0a\x08qwen_mtp\x3a\xff\xff\x7f" + b"a" * BIG,
    "refused": cut_off(),
    "failed": of_script(error_at=0, faulty=[0, 1, 3, 5]),
    "broken off": of_script(error_at=1, faulty=[0, 1, 3, 5]),
    "no such model": pb.ModelInferRequest(
        model_name="nobody", raw_input_contents=[FILLER.encode()]
    ).SerializeToString(),
    "no such task": of_script(parameters={"task": "nothing"}),
}


def single(gateway: GatewayThread, raw: bytes) -> None:
    """Send it as a single call."""
    with grpc.insecure_channel(gateway.gateway.address) as channel:
        method = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        with pytest.raises(grpc.RpcError):
            method(raw, timeout=60)


def streamed(gateway: GatewayThread, raw: bytes, metadata: Any = None) -> None:
    """Send it on a stream."""
    with raw_stream(gateway.gateway.address, metadata) as stream:
        stream.send(raw)
        stream.half_close()
        with contextlib.suppress(grpc.RpcError):
            stream.receive_to_end()


def streamed_whole(gateway: GatewayThread, raw: bytes) -> None:
    """Send it on a stream that ends with a status."""
    streamed(gateway, raw, (("triton_grpc_error", "true"),))


def is_own(frame: FrameType) -> bool:
    """Whether it is the gateway's, and not a client's of this test."""
    return Path(frame.f_code.co_filename).is_relative_to(OWN)


def kept(garbage: list[Any]) -> list[str]:
    """What of requests is among what only the collector would free."""
    found = [type(each).__name__ for each in garbage if isinstance(each, HELD)]
    frames = [each for each in garbage if isinstance(each, FrameType) and is_own(each)]
    return found + [
        f"{frame.f_code.co_name}: {name}"
        for frame in frames
        for name, value in frame.f_locals.items()
        if isinstance(value, bytes | bytearray | str) and len(value) >= BIG
    ]


def garbage_of(act: Callable[[], None]) -> list[str]:
    """What of requests is left when `act` is done."""
    gc.collect()
    gc.disable()
    try:
        act()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return kept(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("send", [single, streamed, streamed_whole])
@pytest.mark.parametrize("name", REQUESTS)
def test_of_a_request_that_failed_over_grpc_nothing_is_kept(
    gateway: GatewayThread, name: str, send: Callable[[GatewayThread, bytes], None]
) -> None:
    """A caller's refused requests of megabytes each were gigabytes of a gateway's memory."""
    found = garbage_of(lambda: send(gateway, REQUESTS[name]))
    assert found == []


@pytest.mark.parametrize(
    "script", [{"error_at": 0, "faulty": [0, 1, 3, 5]}, {"error_at": 1, "faulty": [0, 1, 3, 5]}]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v2/models/qwen_mtp/generate"])
def test_nor_over_http(gateway: GatewayThread, path: str, script: dict[str, Any]) -> None:
    """OpenAI's and Triton's form."""
    text = json.dumps({**script, "filler": FILLER})
    key = "prompt" if "completions" in path else "text_input"

    def send() -> None:
        ask(str(gateway.gateway.http_address), "POST", path, {"model": "qwen_mtp", key: text})

    assert garbage_of(send) == []
