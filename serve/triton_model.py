"""The Triton model of one variant: python backend, decoupled, one thread that talks to Triton.

Runs inside Triton's python-backend process; only there `triton_python_backend_utils` exists.
"""

import json
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trt_mtp.errors import InputError, TrtMtpError, is_panic
from trt_mtp.serve.chat_format import CHAT_FORMAT, ChatFormat
from trt_mtp.serve.contract import (
    CANCELLED,
    CANCELLED_FLAG,
    INTERNAL_ERROR,
)
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Chunk, Engine
from trt_mtp.serve.long_prompts import LongPrompts, ReceivedRequest
from trt_mtp.serve.openable import openable
from trt_mtp.serve.reasoning import Reasoning
from trt_mtp.serve.request_state import RequestState, error_response
from trt_mtp.serve.streaming_interval import interval_in
from trt_mtp.serve.variant_metrics import VariantMetrics
from trt_mtp.serve.variant_request import read_cancel, read_request
from trt_mtp.serve.warm_up import one_at_a_time, warm_up

log = logging.getLogger(__name__)

CANCEL_POLL_S = 0.05  # asking Triton whether a client has left takes about 50 µs per request
PUBLISH_S = 1.0
CHECK_S = 1.0  # whether the engine is alive, while nothing else is to be done
DEATH_S = 1.0  # for errors on their way, when the engine is dead and its process ends
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
CLOSE_S = 10.0  # to send waiting responses when the model is unloaded


def send_cancelled(sender: Any) -> None:
    """End a request that was cancelled before its prompt was read."""
    sender.send(error_response(CANCELLED, pb_utils.TritonError.CANCELLED), flags=FINAL)


@contextmanager
def errors_sent(sender: Any) -> Iterator[None]:
    """While a request is submitted: what is wrong ends it with a sentence."""
    try:
        yield
    except InputError as error:
        sender.send(error_response(str(error), pb_utils.TritonError.INVALID_ARG), flags=FINAL)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        log.exception("a request could not be submitted")
        message = f"{INTERNAL_ERROR}{error}"
        sender.send(error_response(message, pb_utils.TritonError.INTERNAL), flags=FINAL)


def received_request(request: Any, sender: Any) -> ReceivedRequest:
    """Triton's `request`, of which nothing may be read once `execute` has returned."""
    inputs = {}
    for tensor in request.inputs():
        array = tensor.as_numpy()
        # numbers are a view of memory that Triton takes back
        inputs[tensor.name()] = array if array.dtype == object else array.copy()
    return ReceivedRequest(
        request.request_id(),
        inputs,
        request.parameters(),
        frozenset(request.requested_output_names()),
        sender,
    )


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request to cancel another one; `sender` gets the result."""

    request_id: str
    sender: Any

    def answer(self, is_cancelled: bool) -> None:
        """Send whether there was such a request."""
        flag = pb_utils.Tensor(CANCELLED_FLAG, np.array([is_cancelled]))
        self.sender.send(pb_utils.InferenceResponse([flag]), flags=FINAL)


class ResponseSender:
    """Sends responses and polls for clients that left, so that the engine's thread never waits.

    All waiting chunks of a request go out as one response.
    """

    def __init__(self, publish: Callable[[], None], check: Callable[[], None]) -> None:
        """Calls `publish` once per second while requests run, and when they begin or end.

        `check` is called once per second, also while no request runs: an engine may die idle.
        """
        self._publish = publish
        self._check = check
        self._publish_at = 0.0
        # so that nothing is published at once: Triton is not to be called from this thread while
        # the model's `initialize` is about to answer it
        self._was_idle = True
        self._inbox: queue.SimpleQueue[tuple[RequestState, Chunk | None] | Cancellation | None] = (
            queue.SimpleQueue()
        )
        self._running: set[RequestState] = set()
        self._poll_at = 0.0
        self._thread = threading.Thread(target=self._run, name="response-sender", daemon=True)
        self._thread.start()

    def open(self, state: RequestState) -> None:
        """Poll `state` for cancellation from now on."""
        self._inbox.put((state, None))

    def put(self, state: RequestState, chunk: Chunk) -> None:
        """Send `chunk`; returns at once."""
        self._inbox.put((state, chunk))

    def cancel(self, cancellation: Cancellation) -> None:
        """Cancel an opened request if it is still running; returns at once."""
        self._inbox.put(cancellation)

    def close(self) -> None:
        """Send waiting responses, then end the thread."""
        self._inbox.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        is_open = True
        while is_open:
            states, is_open = self._collect()
            try:
                for state in states:
                    self._send(state)
                self._poll()
                self._report()
            except Exception:  # one request's failure must not end the other answers
                log.exception("Triton refused a call")

    def _collect(self) -> tuple[list[RequestState], bool]:
        """Wait for work; returns the requests with a chunk to send, and false after `close`."""
        changed: dict[RequestState, None] = {}
        timeout = max(self._poll_at - time.monotonic(), 0.0) if self._running else CHECK_S
        try:
            item = self._inbox.get(timeout=timeout)
            while item is not None:
                if isinstance(item, Cancellation):
                    self._cancel(item)
                else:
                    self._take(*item, changed)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return list(changed), True
        return list(changed), False

    def _take(
        self, state: RequestState, chunk: Chunk | None, changed: dict[RequestState, None]
    ) -> None:
        if chunk is not None:
            state.add(chunk)
            changed[state] = None
        elif not state.is_over:
            self._running.add(state)
            changed[state] = None  # whose grammar was accepted

    def _cancel(self, cancellation: Cancellation) -> None:
        matches = [s for s in self._running if s.request_id == cancellation.request_id]
        for state in matches:
            assert state.generation is not None
            state.is_cancelled_in_band = True
            state.generation.cancel()
        cancellation.answer(bool(matches))

    def _send(self, state: RequestState) -> None:
        is_over = state.is_over
        if is_over:
            self._running.discard(state)  # Triton must not be polled after the last response
        read = state.take_read(len(self._running))
        if read is not None:
            state.sender.send(read)
        response = state.take_response(len(self._running))
        if response is not None:
            state.sender.send(response, flags=FINAL if is_over else 0)

    def _poll(self) -> None:
        if time.monotonic() < self._poll_at:
            return
        self._poll_at = time.monotonic() + CANCEL_POLL_S
        for state in list(self._running):
            if state.generation is not None and state.sender.is_cancelled():
                state.generation.cancel()
            elif state.is_streaming and state.is_due():  # held back, and its time is over
                self._send(state)

    def _report(self) -> None:
        now, is_idle = time.monotonic(), not self._running
        self._check()
        if is_idle != self._was_idle or (now >= self._publish_at and not is_idle):
            self._was_idle, self._publish_at = is_idle, now + PUBLISH_S
            self._publish()


def end_with(engine: Engine) -> None:
    """End this process when `engine` can't answer any more.

    Triton and `trt-mtp serve` see a model whose process is gone, not one whose every answer is an
    error: requests go to other variants, and the server is started again.
    """
    if engine.failure:
        log.critical("%s; the process of this variant ends", engine.failure)
        time.sleep(DEATH_S)
        os.kill(os.getpid(), signal.SIGKILL)


class TritonPythonModel:
    """The class that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the variant in the model's `variant_folder` parameter."""
        parameters = json.loads(args["model_config"])["parameters"].items()
        texts = {name: value["string_value"] for name, value in parameters}
        try:
            self._interval = interval_in(texts)
            with openable(texts["variant_folder"]) as folder:
                self._engine = open_engine(folder)
                with one_at_a_time(folder / ".."):
                    warm_up(self._engine)
        except TrtMtpError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        chat_format = ChatFormat.from_json(texts.get(CHAT_FORMAT, ""))
        self._reasoning = Reasoning(self._engine.encode, chat_format)
        labels = {name: texts[name] for name in ("variant", "draft_length")}
        metrics = VariantMetrics(self._engine, labels, pb_utils.MetricFamily)

        self._responses = ResponseSender(metrics.publish, lambda: end_with(self._engine))
        self._long_prompts = LongPrompts(self._submit_long)

    def execute(self, requests: list[Any]) -> None:
        """Submit `requests`; answers follow through their response senders."""
        for request in requests:
            sender = request.get_response_sender()
            with errors_sent(sender):
                received = received_request(request, sender)
                cancelled = read_cancel(received.inputs)
                if cancelled is not None:
                    self._cancel(Cancellation(cancelled, sender))
                elif received.is_long:
                    self._long_prompts.put(received)
                else:
                    self._submit(received)

    def _submit_long(self, received: ReceivedRequest) -> None:
        with errors_sent(received.sender):
            if received.sender.is_cancelled():
                send_cancelled(received.sender)
            else:
                self._submit(received)

    def _submit(self, received: ReceivedRequest) -> None:
        responses = self._responses
        wanted = read_request(
            received.inputs, received.parameters, self._engine, self._interval, self._reasoning
        )
        state = RequestState(received.request_id, received.sender, received.outputs, wanted)
        state.generation = self._engine.submit(
            wanted.request, lambda chunk: responses.put(state, chunk)
        )
        responses.open(state)

    def _cancel(self, cancellation: Cancellation) -> None:
        """Cancel a request that runs, or whose prompt waits or is being read."""
        request_id = cancellation.request_id
        waiting = self._long_prompts.take(request_id)
        if waiting is not None:
            send_cancelled(waiting.sender)
            cancellation.answer(True)
        elif not self._long_prompts.defer(request_id, lambda: self._responses.cancel(cancellation)):
            self._responses.cancel(cancellation)

    def finalize(self) -> None:
        """Close the engine; Triton calls this when no request is in flight."""
        self._long_prompts.close()
        self._engine.close()
        self._responses.close()
