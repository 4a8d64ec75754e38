"""The client that commands ask with."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.programs import TIMEOUT_S
from trt_mtp.controller import client as client_module
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import free_ports

QUESTION = Prompt([{"role": "user", "content": "Hello"}])


def message(**outputs: tuple[str, bytes]) -> bytes:
    """A message with these outputs, each of a type and raw contents."""
    response = pb.ModelStreamInferResponse()
    for name, (datatype, content) in outputs.items():
        response.infer_response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.infer_response.raw_output_contents.append(content)
    return bytes(response.SerializeToString())


@contextmanager
def server_of(messages: Iterable[bytes]) -> Iterator[str]:
    """The address of a server whose streams have these messages."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(messages))

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        assert server.stop(None).wait(TIMEOUT_S)


TEXT = ("BYTES", b"\1\0\0\0a")
REASON = ("BYTES", b"\4\0\0\0stop")


@pytest.mark.parametrize(
    "raw",
    [
        message(other=TEXT, finish_reason=REASON),
        message(text_output=("BYTES", b"\xff\xff\xff\x7fa"), finish_reason=REASON),
        message(text_output=("BYTES", b"\1\0\0\0\xff"), finish_reason=REASON),
        message(text_output=TEXT, finish_reason=REASON),
        message(text_output=TEXT, finish_reason=REASON, output_ids=("INT32", b"abc")),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(raw: bytes) -> None:
    """A server may be another one, or lie."""
    refused = pytest.raises(TrtMtpError, match="is not the answer of a variant")
    with server_of([raw]) as url, StreamClient(url) as client, refused:
        client.ask("qwen_mtp", QUESTION)


def test_an_answer_without_end_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many messages come."""
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1_000)
    endless = itertools.repeat(message(text_output=TEXT))
    refused = pytest.raises(TrtMtpError, match="more than 1,000 bytes and no end")
    with server_of(endless) as url, StreamClient(url) as client, refused:
        client.ask("qwen_mtp", QUESTION)


def test_a_lost_stream_is_an_error_each_time() -> None:
    """The first request on a stream that can't be, and every later one, ends in one sentence."""
    port = free_ports({"nobody": 0})["nobody"]
    with StreamClient(f"127.0.0.1:{port}", reply_timeout_s=20) as client:
        for _ in range(3):
            with pytest.raises(TrtMtpError, match="qwen_mtp: "):
                client.ask("qwen_mtp", Prompt([{"role": "user", "content": "Hello"}]))
