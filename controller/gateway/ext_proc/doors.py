"""The requests that the picker knows how to send to Triton, and how each is answered.

The variants are decoupled models, which Triton asks for by ModelStreamInfer alone. So that is what
every picked request becomes on its way, and its answer is turned back here.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

import grpc

from trt_mtp.controller.gateway.ext_proc.messages import set_headers
from trt_mtp.controller.gateway.failure import RpcError
from trt_mtp.controller.gateway.http.errors import error_body, http_status
from trt_mtp.controller.gateway.http.generate_json import generate_answer, read_generate
from trt_mtp.controller.gateway.http.kserve_json import (
    JSON_SIZE,
    BinaryOutputs,
    infer_answer,
    read_infer,
)
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import SERVICE, InferRequest, made_request, read_request

STREAM_PATH = f"/{SERVICE.full_name}/ModelStreamInfer"
UNARY_PATH = f"/{SERVICE.full_name}/ModelInfer"
HTTP_OK, HTTP_TIMEOUT = 200, 504
LEFT = frozenset({"origin", "content-encoding"})  # headers of requests that are not picked
_FRAME_HEAD = 5  # bytes before a gRPC message: whether it is compressed, and its size
_JSON = ("content-type", "application/json")


# reads a body by a function that may take a while
Apart = Callable[[bytes, Callable[[bytes], Any]], Awaitable[Any]]


class Door(Protocol):
    """One form of requests."""

    async def read(self, body: bytes, apart: Apart) -> InferRequest | None:
        """The request; None for one that the gateways are to read. Raises InputError."""

    def answer(self, response: Any, mutation: Any) -> bytes:
        """The body for a pb.ModelInferResponse; its headers go into the HeaderMutation."""

    def refuse(self, error: RpcError, immediate: Any) -> None:
        """Put an error into an ImmediateResponse."""


def door_of(headers: Mapping[str, str], model: str) -> Door | None:
    """The door of a request; None for what is not picked.

    What web pages send is left to the gateways, which know whether they may.
    """
    if headers.get(":method") != "POST" or headers.keys() & LEFT:
        return None
    path = headers.get(":path", "").partition("?")[0]
    if path == UNARY_PATH and headers.get("content-type", "").startswith("application/grpc"):
        return UnaryDoor()
    if path == f"/v2/models/{model}/generate":
        return GenerateDoor(model)
    if path == f"/v2/models/{model}/infer":
        return InferDoor(model, headers.get(JSON_SIZE.lower()))
    return None


class UnaryDoor:
    """ModelInfer of KServe's gRPC service."""

    async def read(self, body: bytes, apart: Apart) -> InferRequest | None:
        """See Door."""
        messages = list(messages_in(body)) if body[:1] == b"\0" else []  # else it is compressed
        return read_request(messages[0]) if len(messages) == 1 else None

    def answer(self, response: Any, mutation: Any) -> bytes:
        """See Door."""
        return framed(response.SerializeToString())

    def refuse(self, error: RpcError, immediate: Any) -> None:
        """See Door."""
        immediate.status.code = HTTP_OK
        immediate.grpc_status.status = error.code.value[0]
        immediate.body = error.details.encode()


class _HttpDoor:
    """What both forms over HTTP have in common: how an error is told."""

    def refuse(self, error: RpcError, immediate: Any) -> None:
        """See Door."""
        immediate.status.code = http_status(error.code)
        immediate.body = error_body(error.details).encode()
        set_headers(immediate.headers, [_JSON])


class GenerateDoor(_HttpDoor):
    """Triton's generate over HTTP."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def read(self, body: bytes, apart: Apart) -> InferRequest | None:
        """See Door."""
        return made_request(await apart(body, lambda raw: read_generate(raw, self._model)))

    def answer(self, response: Any, mutation: Any) -> bytes:
        """See Door."""
        set_headers(mutation, [_JSON])
        return generate_answer(response).encode()


class InferDoor(_HttpDoor):
    """KServe's infer over HTTP, with its tensors in JSON or in binary."""

    def __init__(self, model: str, json_size: str | None) -> None:
        self._model, self._json_size = model, json_size
        self._wanted = BinaryOutputs({}, others=False)

    async def read(self, body: bytes, apart: Apart) -> InferRequest | None:
        """See Door."""
        message, self._wanted = await apart(
            body, lambda raw: read_infer(raw, self._json_size, self._model)
        )
        return made_request(message)

    def answer(self, response: Any, mutation: Any) -> bytes:
        """See Door."""
        body, json_size = infer_answer(response, self._wanted)
        is_binary = json_size is not None
        kind = ("content-type", "application/octet-stream") if is_binary else _JSON
        set_headers(mutation, [kind, (JSON_SIZE.lower(), str(json_size))][: 1 + is_binary])
        return body


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it.

    >>> framed(b"ab")
    b'\\x00\\x00\\x00\\x00\\x02ab'
    """
    return b"\0" + len(message).to_bytes(4, "big") + message


def messages_in(body: bytes) -> Iterator[bytes]:
    """The messages in the body of a gRPC call; raises InputError where it breaks off.

    >>> list(messages_in(framed(b"ab") + framed(b"")))
    [b'ab', b'']
    """
    at = 0
    while at < len(body):
        start = at + _FRAME_HEAD
        at = start + int.from_bytes(body[at + 1 : start], "big")
        if at > len(body) or start > len(body):
            raise InputError("the call's message is cut off")
        yield body[start:at]


def failed_status(headers: Mapping[str, str]) -> grpc.StatusCode | None:
    """The status of a call that fails with its first headers; None for one that goes on."""
    if headers.get(":status") == str(HTTP_TIMEOUT):
        return grpc.StatusCode.DEADLINE_EXCEEDED  # Envoy's own: the answer took longer than it may
    if headers.get(":status") != str(HTTP_OK):
        return grpc.StatusCode.UNAVAILABLE  # the same: it couldn't reach the server
    number = headers.get("grpc-status", "0")
    by_number = {str(code.value[0]): code for code in grpc.StatusCode}
    code = by_number.get(number, grpc.StatusCode.UNKNOWN)
    return None if code is grpc.StatusCode.OK else code
