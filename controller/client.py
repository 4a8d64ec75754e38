"""A client like that of users: stock tritonclient, one stream, one answer at a time, timed."""

import itertools
import json
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.hosts import channel_options, normal_target

REPLY_TIMEOUT_S = 120.0
QUIET_S = 3.0  # without a message; then the server is asked whether it lives
LIVE_S = 4.0  # for it to answer that, twice: a busy one does in milliseconds
CLOSE_S = 3.0  # for a server to end the stream after us
MAX_ANSWER_BYTES = 1 << 26
# what reading a message raises that has not the tensors of a variant's
NO_ANSWER = (AttributeError, LookupError, TypeError, ValueError, struct.error)
UNREACHABLE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request: what to ask, and how to sample the answer."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    emitted_ids: tuple[int, ...] = ()  # of the answer, which continues after them
    wants_margin: bool = False


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """An answer with its times and the counts of its drafts."""

    text: str
    token_ids: tuple[int, ...]
    ttft_s: float  # from sending to the first token
    duration_s: float  # from sending to the last token
    num_steps: int
    accepted_per_position: tuple[int, ...]
    variant: str  # "" without a gateway
    task: str  # the gateway's guess
    decision_id: str = ""
    reasons: str = ""  # of the decision, where the request's parameter `explain` asked for them
    num_first_tokens: int = 1  # of the first message
    itl_s: tuple[float, ...] = ()  # between two messages
    margin: float | None = None  # of the two best logits of the first token, if wanted and known

    @property
    def step_s(self) -> float:
        """Seconds per step after the first token; 0 if there was none."""
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

    def __init__(
        self, url: str, reply_timeout_s: float = REPLY_TIMEOUT_S, credentials: Any = None
    ) -> None:
        """`url` is host:port; an answer may pause for `reply_timeout_s` at most.

        `credentials` are a grpc.ChannelCredentials; without, the connection is in clear.
        """
        self._url = url
        self._reply_timeout_s = reply_timeout_s
        self._client = grpcclient.InferenceServerClient(
            normal_target(url),
            creds=credentials,
            channel_args=list(channel_options(url)) or None,
        )
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
        """Half-close the stream and read it to its end; after CLOSE_S, drop the connection.

        Cancelling at once could abort Triton 2.51 if the stream still carries an answer.
        """
        late = threading.Timer(CLOSE_S, self._client.stop_stream, kwargs={"cancel_requests": True})
        late.daemon = True
        late.start()
        self._client.stop_stream()  # ended by `late`
        late.cancel()
        self._client.close()

    def is_reachable(self) -> bool:
        """Whether a server answers at the address within LIVE_S."""
        try:
            self._client.is_server_live(client_timeout=LIVE_S)
        except InferenceServerException as error:
            return str(error.status()) not in UNREACHABLE
        return True

    def ask(
        self, model: str, prompt: Prompt, on_text: Callable[[str], None] | None = None
    ) -> TimedAnswer:
        """The answer of `model`; raises TrtMtpError if it refuses, fails or is silent.

        It notices a server that stopped answering in seconds, a silent model after the longest
        pause of an answer. `on_text` gets each piece of the text when it comes.
        """
        sent_at = time.perf_counter()
        try:
            self._client.async_stream_infer(
                model, tensors(prompt), parameters=dict(prompt.parameters) or None
            )
        except InferenceServerException:  # tritonclient says no more than that
            raise TrtMtpError(f"{model}: the stream has ended, the server may be gone") from None
        messages: list[tuple[float, Any]] = []
        try:
            for came_at, result in self._messages(model):
                messages.append((came_at, result))
                if on_text is not None:
                    on_text(_text(result))
            return _timed_answer(sent_at, messages)
        except NO_ANSWER:  # of tritonclient, numpy and ours
            raise TrtMtpError(
                f"{model}: what the server at {self._url} sends is not the answer of a variant"
            ) from None

    def _messages(self, model: str) -> Iterator[tuple[float, Any]]:
        """The messages of one answer, each with the time when it came."""
        is_over, num_bytes = False, 0
        while not is_over:
            came_at, result = self._next(model)
            num_bytes += result.get_response().ByteSize()
            if num_bytes > MAX_ANSWER_BYTES:
                raise TrtMtpError(
                    f"{model}: its answer has more than {MAX_ANSWER_BYTES:,} bytes and no end"
                )
            yield came_at, result
            is_over = result.as_numpy("finish_reason") is not None

    def _next(self, model: str) -> tuple[float, Any]:
        deadline = time.monotonic() + self._reply_timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            try:
                arrived, result, error = self._replies.get(timeout=min(left_s, QUIET_S))
                break
            except queue.Empty:
                if not left_s:
                    silent = f"{model} sent nothing for {self._reply_timeout_s:.0f} s"
                    raise TrtMtpError(silent) from None
            self._require_live(model)
        if isinstance(error, InferenceServerException):
            raise TrtMtpError(f"{model}: {error.message()}")
        return arrived, result

    def _require_live(self, model: str) -> None:
        """Raise TrtMtpError if the server neither says that it lives nor sends something."""
        reason = ""
        for _ in range(2):
            try:
                self._client.is_server_live(client_timeout=LIVE_S)
            except InferenceServerException as error:
                if str(error.status()) not in UNREACHABLE:
                    return  # it answers, whatever it means
                reason = " ".join(error.message().split())
            else:
                return
        if self._replies.empty():
            raise TrtMtpError(f"{model}: the server at {self._url} stopped answering ({reason})")


def _text(result: Any) -> str:
    return str(result.as_numpy("text_output")[0].decode())


def _timed_answer(sent_at: float, messages: Sequence[tuple[float, Any]]) -> TimedAnswer:
    times, results = zip(*messages, strict=True)
    ids = [result.as_numpy("output_ids").tolist() for result in results]
    last = results[-1]
    parameters, margin = last.get_response().parameters, last.as_numpy("margin")
    return TimedAnswer(
        text="".join(map(_text, results)),
        token_ids=tuple(itertools.chain.from_iterable(ids)),
        ttft_s=times[0] - sent_at,
        duration_s=times[-1] - sent_at,
        num_steps=int(last.as_numpy("num_steps")[0]),
        accepted_per_position=tuple(last.as_numpy("accepted_per_position").tolist()),
        **{
            name: parameters[name].string_param if name in parameters else ""
            for name in ("variant", "task", "decision_id", "reasons")
        },
        num_first_tokens=len(next(filter(None, ids), ())),
        itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
        margin=None if margin is None else float(margin[0]),
    )
