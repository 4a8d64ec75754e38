"""A client as users have one: stock tritonclient, one stream, one answer at a time, timed."""

import itertools
import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from trt_mtp.errors import TrtMtpError

REPLY_TIMEOUT_S = 120.0
CLOSE_S = 5.0  # for a server to end the stream after us


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask, and how to draw the answer."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    emitted_ids: tuple[int, ...] = ()  # of the answer, which is asked to go on after them
    wants_margin: bool = False


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """An answer, what it took, and what its drafts did."""

    text: str
    token_ids: tuple[int, ...]
    ttft_s: float  # from sending to the first token
    duration_s: float  # from sending to the last token
    num_steps: int
    accepted_per_position: tuple[int, ...]
    variant: str  # "" when no gateway stood between
    task: str  # the gateway's guess
    decision_id: str = ""
    num_first_tokens: int = 1  # of the first message
    itl_s: tuple[float, ...] = ()  # between two messages
    margin: float | None = None  # of the two best logits of the first token, if wanted and known

    @property
    def step_s(self) -> float:
        """Seconds a step after the first token; 0 when there was none."""
        return (self.duration_s - self.ttft_s) / self.num_steps if self.num_steps else 0.0


def tensors(prompt: Prompt) -> list[grpcclient.InferInput]:
    """The request's inputs, by the contract of trt_mtp.serve.contract."""
    values: dict[str, tuple[np.dtype[Any], str, object]] = {
        "messages": (np.dtype(object), "BYTES", json.dumps(prompt.messages).encode()),
        "streaming": (np.dtype(bool), "BOOL", True),
        "sampling_param_max_tokens": (np.dtype(np.int32), "INT32", prompt.max_tokens),
        "sampling_param_temperature": (np.dtype(np.float32), "FP32", prompt.temperature),
        "sampling_param_seed": (np.dtype(np.uint64), "UINT64", prompt.seed),
    }
    if prompt.tools:
        values["tools"] = (np.dtype(object), "BYTES", json.dumps(prompt.tools).encode())
    if prompt.wants_margin:
        values["return_margin"] = (np.dtype(bool), "BOOL", True)
    inputs = []
    if prompt.emitted_ids:
        emitted = np.array(prompt.emitted_ids, np.int32)
        tensor = grpcclient.InferInput("emitted_ids", [emitted.size], "INT32")
        tensor.set_data_from_numpy(emitted)
        inputs.append(tensor)
    for name, (dtype, datatype, value) in values.items():
        tensor = grpcclient.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype=dtype))
        inputs.append(tensor)
    return inputs


class StreamClient:
    """One gRPC stream to a Triton server or the gateway."""

    def __init__(self, url: str, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """`url` is host:port; an answer may pause for `reply_timeout_s` at most."""
        self._reply_timeout_s = reply_timeout_s
        self._is_waiting = False  # for the rest of an answer
        self._client = grpcclient.InferenceServerClient(url)
        self._replies: queue.Queue[tuple[float, Any, Exception | None]] = queue.Queue()
        self._client.start_stream(
            lambda result, error: self._replies.put((time.perf_counter(), result, error))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel what is in flight; a stream on which nothing is ends without, see Upstream.end."""
        stop = self._client.stop_stream
        late = threading.Timer(CLOSE_S, stop, kwargs={"cancel_requests": True})
        late.daemon = True
        late.start()
        stop(cancel_requests=self._is_waiting)
        late.cancel()
        self._client.close()

    def ask(self, model: str, prompt: Prompt) -> TimedAnswer:
        """The answer of `model`; raises TrtMtpError when it refuses, fails or is silent."""
        start = time.perf_counter()
        self._is_waiting = True
        try:
            self._client.async_stream_infer(
                model, tensors(prompt), parameters=dict(prompt.parameters) or None
            )
        except InferenceServerException:  # tritonclient says no more than that
            self._is_waiting = False
            raise TrtMtpError(f"{model}: the stream has ended, the server may be gone") from None
        texts: list[str] = []
        ids: list[int] = []
        times: list[float] = []
        num_first_tokens = 0
        while True:
            arrived, result = self._next(model)
            times.append(arrived)
            ids.extend(result.as_numpy("output_ids").tolist())
            num_first_tokens = num_first_tokens or len(ids)
            texts.append(result.as_numpy("text_output")[0].decode())
            if result.as_numpy("finish_reason") is not None:
                break
        self._is_waiting = False
        parameters = result.get_response().parameters
        margin = result.as_numpy("margin")
        return TimedAnswer(
            text="".join(texts),
            token_ids=tuple(ids),
            ttft_s=times[0] - start,
            duration_s=times[-1] - start,
            num_steps=int(result.as_numpy("num_steps")[0]),
            accepted_per_position=tuple(result.as_numpy("accepted_per_position").tolist()),
            **{
                name: parameters[name].string_param if name in parameters else ""
                for name in ("variant", "task", "decision_id")
            },
            num_first_tokens=num_first_tokens,
            itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
            margin=None if margin is None else float(margin[0]),
        )

    def _next(self, model: str) -> tuple[float, Any]:
        try:
            arrived, result, error = self._replies.get(timeout=self._reply_timeout_s)
        except queue.Empty:
            raise TrtMtpError(f"{model} sent nothing for {self._reply_timeout_s:.0f} s") from None
        if isinstance(error, InferenceServerException):
            self._is_waiting = False
            raise TrtMtpError(f"{model}: {error.message()}")
        return arrived, result
