"""A stock tritonclient, driven as its users do: streaming gRPC with a callback."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

TIMEOUT_S = 60.0
STREAM_S = 240.0  # for all of a stream; less than a test's deadline in pyproject.toml
FINAL = "triton_final_response"


@dataclass(frozen=True, slots=True)
class Response:
    """One message of a stream: the outputs it brought, or an error."""

    request_id: str
    outputs: dict[str, Any]
    is_final: bool
    error: str = ""


def tensor(name: str, value: Any) -> Any:
    """An InferInput of the type that the contract has for a Python value of this kind."""
    values = value if isinstance(value, list | np.ndarray) else [value]
    if isinstance(values, np.ndarray):
        array = values
    elif isinstance(values[0], str | bytes):
        texts = [text.encode() if isinstance(text, str) else text for text in values]
        array = np.array(texts, np.object_)
    else:
        whole = np.uint64 if name == "sampling_param_seed" else np.int32
        kinds = {bool: np.bool_, int: whole, float: np.float32}
        array = np.array(values, kinds[type(values[0])])
    datatype = "BYTES" if array.dtype == np.object_ else NAMES[array.dtype.name]
    result = grpcclient.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


NAMES = {"bool": "BOOL", "int32": "INT32", "float32": "FP32", "uint64": "UINT64", "int64": "INT64"}


class Stream:
    """A stream that takes many requests, as a tritonclient has one of at a time."""

    def __init__(self, url: str) -> None:
        """Connect to the gRPC endpoint at `url`."""
        self._client = grpcclient.InferenceServerClient(url)
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._client.start_stream(
            lambda result, error: self._responses.put(_response(result, error)),
            stream_timeout=STREAM_S,
        )

    def send(
        self,
        model: str,
        *,
        outputs: Sequence[str] = (),
        parameters: dict[str, Any] | None = None,
        request_id: str = "",
        **inputs: Any,
    ) -> None:
        """Send a request."""
        self._client.async_stream_infer(
            model,
            [tensor(name, value) for name, value in inputs.items()],
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs] or None,
            parameters=parameters,
            request_id=request_id,
            enable_empty_final_response=True,
        )

    def receive(self) -> Response:
        """The next response."""
        return self._responses.get(timeout=TIMEOUT_S)

    def receive_all(self) -> list[Response]:
        """All responses up to the final one, or the error."""
        responses = [self.receive()]
        while not (responses[-1].is_final or responses[-1].error):
            responses.append(self.receive())
        return responses

    def ask(self, model: str, **request: Any) -> list[Response]:
        """Send a request and wait for all of its answer."""
        self.send(model, **request)
        return self.receive_all()

    def close(self, cancel: bool = False) -> None:
        """End the stream when all answers are there, or at once when `cancel`.

        Triton 2.51 aborts at times when a stream is cancelled that has an answer on it.
        """
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


@contextmanager
def streaming(url: str) -> Iterator[Stream]:
    """A stream whose answers are complete at the end, unless the test failed."""
    with leaving(url) as stream:
        yield stream
        stream.close()


@contextmanager
def leaving(url: str) -> Iterator[Stream]:
    """A stream that is cancelled at the end, whatever is on it."""
    stream = Stream(url)
    try:
        yield stream
    finally:
        stream.close(cancel=True)


def _response(result: Any, error: Any) -> Response:
    if error is not None:
        return Response("", {}, False, str(error.message()))
    message = result.get_response()
    outputs = {output.name: result.as_numpy(output.name).tolist() for output in message.outputs}
    return Response(message.id, outputs, bool(message.parameters[FINAL].bool_param))


def text_of(responses: Sequence[Response]) -> str:
    """The texts of all responses, joined."""
    return b"".join(
        response.outputs.get("text_output", [b""])[0] for response in responses
    ).decode()
