"""Answers of a Triton that lies: it has no variants, and what is known of others goes on."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.programs import TIMEOUT_S
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.model_config import described
from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import ChatFormat

MODEL = "qwen_mtp_k3"
GARBAGE = b"\xff\xff"
DEEP = "[" * 100_000


def config(name: str = MODEL, **parameters: str) -> bytes:
    """A variant's configuration."""
    response = pb.ModelConfigResponse()
    response.config.name = name
    for key, value in parameters.items():
        response.config.parameters[key].string_value = value
    return bytes(response.SerializeToString())


class Liar(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server whose calls are answered with these bytes, those about other models with nothing."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self.answers = dict(answers)

    def service(self, details: Any) -> Any:
        """The handler of a call."""
        raw = self.answers.get(details.method.rpartition("/")[2], b"")

        def answer(request: bytes, context: Any) -> bytes:
            if request and MODEL.encode() not in request:
                context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model")
            return raw

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Liar, str]]]:
    """Starts one; it and its address."""
    server = grpc.server(ThreadPoolExecutor(2))

    def start(**answers: bytes) -> tuple[Liar, str]:
        liar = Liar(answers)
        server.add_generic_rpc_handlers((liar,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return liar, f"127.0.0.1:{port}"

    yield start
    assert server.stop(None).wait(TIMEOUT_S)


async def looked(backend: Backend) -> None:
    await backend.discover()
    await backend.refresh()


def test_what_is_no_answer_ends_no_watch(
    serve: Callable[..., tuple[Liar, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as nothing, is logged once, and the next honest answer is taken."""
    liar, target = serve(ServerLive=GARBAGE, ModelReady=GARBAGE, ModelConfig=GARBAGE)

    async def run() -> None:
        backend = Backend(target, "qwen_mtp")
        try:
            await looked(backend)
            await looked(backend)
            assert not backend.variants
            assert not backend.is_live
            liar.answers["ModelConfig"] = config(draft_length="3")
            await looked(backend)
            assert list(backend.variants) == ["k3"]
            assert not backend.variants["k3"].is_ready
            liar.answers["ModelReady"] = pb.ModelReadyResponse(ready=True).SerializeToString()
            await looked(backend)
            assert backend.variants["k3"].is_ready
        finally:
            await backend.close()

    asyncio.run(run())
    complaints = [record for record in caplog.records if "can't be used" in record.message]
    assert len(complaints) == 3  # one for each kind, not for each name at each look


@pytest.mark.parametrize(
    "raw",
    [
        GARBAGE,
        config("embeddings"),
        config(""),
        config(variant="k3\r\nX-Evil: 1"),
        config(variant="k3\u202e"),
        config(variant="k" * 1_000),
    ],
)
def test_what_can_be_no_variant_is_none(raw: bytes) -> None:
    """Another model's name would keep clients from that model; a variant's is sent in headers."""
    with pytest.raises(InputError):
        described(raw, MODEL, "qwen_mtp")


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_batch_size": "0", "max_seq_len": "0"},
        {"max_batch_size": "9" * 5_000, "draft_length": "-1"},
        {"max_batch_size": "\u0663"},
        {"measured_on": DEEP, "chat_format": DEEP, "draft_len_schedule": DEEP},
        {"measured_on": "[1]", "chat_format": "{}", "draft_len_schedule": '{"8": 1e999}'},
    ],
)
def test_what_can_not_be_has_a_default(parameters: dict[str, str]) -> None:
    """Shares of its slots are worked out for each request, whoever gets it then."""
    found = described(config(**parameters), MODEL, "qwen_mtp")
    assert found["name"] == "k3"
    assert found["draft_length"] == 3
    assert found["max_batch_size"] > 0
    assert found["max_seq_len"] > 0
    assert found["measured_on"] == {}
    assert found["chat_format"] == ChatFormat()
    assert found["schedule"] is None


def test_what_is_said_is_taken() -> None:
    """Of an honest server."""
    said = {"variant": "k5_1f2e3d4c", "draft_length": "5", "max_batch_size": "16"}
    found = described(
        config("qwen_mtp_k5_1f2e3d4c", **said, measured_on=json.dumps({"engine": "cpu"})),
        "qwen_mtp_k5_1f2e3d4c",
        "qwen_mtp",
    )
    assert (found["name"], found["draft_length"], found["max_batch_size"]) == ("k5_1f2e3d4c", 5, 16)
    assert found["measured_on"] == {"engine": "cpu"}
