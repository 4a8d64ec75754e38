"""The Triton model of one variant: python backend, decoupled, one thread that talks to Triton.

Runs inside Triton's python-backend process, where alone `triton_python_backend_utils` exists.
"""

import fcntl
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.contract import CANCELLED, INTERNAL_ERROR, OUTPUTS
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Chunk, Engine, Generation, Request, SamplingParams
from trt_mtp.serve.variant_metrics import VariantMetrics
from trt_mtp.serve.variant_request import VariantRequest, read_request

log = logging.getLogger(__name__)

CANCEL_POLL_S = 0.05  # asking Triton whether a client is still there takes about 50 µs a request
PUBLISH_S = 1.0
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
NUMPY_TYPES = {"TYPE_STRING": np.object_, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}
DTYPES = {spec.name: NUMPY_TYPES[spec.data_type] for spec in OUTPUTS}


class Flight:
    """A request being answered; after submission only the courier's thread touches it."""

    def __init__(self, sender: Any, outputs: frozenset[str], request: VariantRequest) -> None:
        self.sender = sender
        self.outputs = outputs - request.omitted
        self.is_streaming = request.is_streaming
        self.num_input_tokens = len(request.request.prompt_ids)
        self.generation: Generation | None = None
        self._text = request.echo
        self._token_ids: list[int] = []
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk that is to be sent."""
        self._text += chunk.text
        self._token_ids += chunk.token_ids
        self._last = chunk

    @property
    def is_over(self) -> bool:
        """True when the last chunk was added."""
        return self._last is not None and self._last.finish_reason is not None

    def take_response(self) -> Any:
        """The response over what was added since the last one; None when none is needed."""
        chunk = self._last
        assert chunk is not None
        if chunk.finish_reason == "error":
            return error_response(INTERNAL_ERROR + chunk.error, pb_utils.TritonError.INTERNAL)
        if chunk.finish_reason == "cancelled":
            return error_response(CANCELLED, pb_utils.TritonError.CANCELLED)
        if chunk.finish_reason is None and not (self.is_streaming and self._has_news()):
            return None
        values: dict[str, Any] = {"text_output": [self._text.encode()]}
        values["output_ids"] = self._token_ids
        if chunk.finish_reason is not None:
            values |= self._closing_values(chunk)
        self._text, self._token_ids = "", []
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.array(value, DTYPES[name]))
                for name, value in values.items()
                if name in self.outputs
            ]
        )

    def _has_news(self) -> bool:
        return bool(self._text and "text_output" in self.outputs) or "output_ids" in self.outputs

    def _closing_values(self, chunk: Chunk) -> dict[str, Any]:
        counters = chunk.counters
        margin = {} if chunk.margin is None else {"margin": [chunk.margin]}
        return margin | {
            "finish_reason": [str(chunk.finish_reason).encode()],
            "num_input_tokens": [self.num_input_tokens],
            "num_output_tokens": [chunk.num_output_tokens],
            "num_steps": [counters.num_steps],
            "num_draft_tokens": [counters.num_draft_tokens],
            "num_accepted_draft_tokens": [counters.num_accepted_draft_tokens],
            "accepted_per_position": list(counters.accepted_per_position),
        }


def error_response(message: str, code: Any) -> Any:
    """A response that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class Courier:
    """Sends chunks and notices clients that left, so that the engine's thread never waits.

    All chunks of a request that are waiting go out as one response.
    """

    def __init__(self, publish: Callable[[], None]) -> None:
        """`publish` is called once a second while there are requests, and when that changes."""
        self._publish = publish
        self._publish_at = 0.0
        self._was_idle = False
        self._inbox: queue.SimpleQueue[tuple[Flight, Chunk | None] | None] = queue.SimpleQueue()
        self._flights: set[Flight] = set()
        self._next_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def open(self, flight: Flight) -> None:
        """Watch `flight` for cancellation from now on."""
        self._inbox.put((flight, None))

    def put(self, flight: Flight, chunk: Chunk) -> None:
        """Send `chunk`; returns at once."""
        self._inbox.put((flight, chunk))

    def close(self) -> None:
        """Send what is waiting, then end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            flights, is_open = self._collect()
            try:
                for flight in flights:
                    self._send(flight)
                self._poll()
                self._report()
            except Exception:  # one request's trouble may not end the others' answers
                log.exception("Triton refused a call")

    def _collect(self) -> tuple[list[Flight], bool]:
        """Wait for something to do; the flights that have a chunk to send, and false at the end."""
        changed: dict[Flight, None] = {}
        timeout = max(self._next_poll - time.monotonic(), 0.0) if self._flights else None
        try:
            item = self._inbox.get(timeout=timeout)
            while item is not None:
                flight, chunk = item
                if chunk is not None:
                    flight.add(chunk)
                    changed[flight] = None
                elif not flight.is_over:
                    self._flights.add(flight)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return list(changed), True
        return list(changed), False

    def _send(self, flight: Flight) -> None:
        is_over = flight.is_over
        if is_over:
            self._flights.discard(flight)  # Triton may not be asked about it after the last one
        response = flight.take_response()
        if response is not None:
            flight.sender.send(response, flags=FINAL if is_over else 0)

    def _poll(self) -> None:
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + CANCEL_POLL_S
        for flight in self._flights:
            if flight.generation is not None and flight.sender.is_cancelled():
                flight.generation.cancel()

    def _report(self) -> None:
        now, is_idle = time.monotonic(), not self._flights
        if is_idle != self._was_idle or (now >= self._publish_at and not is_idle):
            self._was_idle, self._publish_at = is_idle, now + PUBLISH_S
            self._publish()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the variants in `folder`, one after the other: what one compiles, the next ones load."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def warm_up(engine: Engine) -> None:
    """Answer a tiny request, so that nothing is left to be compiled or mapped when clients come."""
    is_done = threading.Event()

    def on_chunk(chunk: Chunk) -> None:
        if chunk.finish_reason is not None:
            is_done.set()

    engine.submit(Request((0, 0), SamplingParams(max_tokens=8, ignore_eos=True)), on_chunk)
    is_done.wait()


class TritonPythonModel:
    """What Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the variant that the model's `variant_folder` parameter names."""
        parameters = json.loads(args["model_config"])["parameters"]
        try:
            folder = Path(parameters["variant_folder"]["string_value"])
            self._engine = open_engine(folder)
        except TrtMtpError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        with one_at_a_time(folder.parent):
            warm_up(self._engine)
        labels = {
            "variant": folder.name,
            "draft_length": parameters["draft_length"]["string_value"],
        }
        metrics = VariantMetrics(self._engine, labels, pb_utils.MetricFamily)
        self._courier = Courier(metrics.publish)

    def execute(self, requests: list[Any]) -> None:
        """Submit `requests`; answers follow through their response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except InputError as error:
                code = pb_utils.TritonError.INVALID_ARG
                sender.send(error_response(str(error), code), flags=FINAL)
            except Exception as error:
                log.exception("a request could not be submitted")
                code = pb_utils.TritonError.INTERNAL
                sender.send(error_response(f"{INTERNAL_ERROR}{error}", code), flags=FINAL)

    def _submit(self, request: Any, sender: Any) -> None:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        wanted = read_request(inputs, request.parameters(), self._engine)
        flight = Flight(sender, frozenset(request.requested_output_names()), wanted)
        courier = self._courier
        flight.generation = self._engine.submit(
            wanted.request, lambda chunk: courier.put(flight, chunk)
        )
        courier.open(flight)

    def finalize(self) -> None:
        """Close the engine; Triton calls this when no request is in flight."""
        self._engine.close()
        self._courier.close()
