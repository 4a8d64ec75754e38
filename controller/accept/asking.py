"""Requests of an acceptance through stock tritonclient, a stream each: answered, or left."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from trt_mtp.controller.client import Prompt, tensors
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.contract import SEED, STOP
from trt_mtp.serve.hosts import channel_options, normal_target

MODEL = "qwen_mtp"
LOOK_S = 0.25
STOP_S = 2.0  # for a stream to end after its answer

OnFirst = Callable[[str], None]  # is told the variant of the first message


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: a prompt, and what else the request says."""

    prompt: Prompt
    stop: tuple[str, ...] = ()
    is_seeded: bool = True  # without, the variant draws a seed

    def on(self, draft_length: int) -> "Ask":
        """The same request for the variant of that draft length."""
        parameters = {**self.prompt.parameters, "draft_length": str(draft_length)}
        return replace(self, prompt=replace(self.prompt, parameters=parameters))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, as a client has it."""

    text: str
    token_ids: tuple[int, ...]
    num_messages: int  # with tokens
    finish_reason: str
    num_output_tokens: int
    num_steps: int
    num_accepted_draft_tokens: int
    accepted_per_position: tuple[int, ...]
    seed: int
    variant: str  # of the first message
    failed_over: str  # variants that were left, "" for none
    margin: float | None = None  # of the two best logits of the first token, if wanted and known


@dataclass(slots=True)
class _Stream:
    """One stream, with the messages that came."""

    client: Any
    replies: "queue.SimpleQueue[tuple[Any, Any]]" = field(default_factory=queue.SimpleQueue)


class Asker:
    """Asks the public model at a gateway."""

    def __init__(self, address: str, over: threading.Event) -> None:
        """`address` is host:port; every wait ends when `over` is set."""
        self._address, self._over = address, over

    def ask(self, ask: Ask, on_first: OnFirst | None = None) -> Said:
        """The whole answer; raises TrtMtpError if it is refused, fails, or takes too long."""
        stream = self._open(ask)
        results: list[Any] = []
        try:
            while not results or results[-1].as_numpy("finish_reason") is None:
                results.append(self._next(stream))
                if len(results) == 1 and on_first is not None:
                    on_first(_parameter(results[0], "variant"))
            return _said(results)
        finally:
            _close(stream.client)

    def leave(self, ask: Ask) -> None:
        """Ask, and leave after the first message."""
        stream = self._open(ask)
        try:
            self._next(stream)
        finally:
            stream.client.stop_stream(cancel_requests=True)
            stream.client.close()

    def ask_all(self, asks: Sequence[Ask], on_first: OnFirst | None = None) -> list[Said]:
        """The answers to requests that are sent together."""
        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(lambda ask: self.ask(ask, on_first), asks))

    def _open(self, ask: Ask) -> _Stream:
        options = list(channel_options(self._address)) or None
        client = grpcclient.InferenceServerClient(
            normal_target(self._address), channel_args=options
        )
        stream = _Stream(client)
        client.start_stream(lambda result, error: stream.replies.put((result, error)))
        parameters = dict(ask.prompt.parameters) or None
        try:
            client.async_stream_infer(MODEL, inputs_of(ask), parameters=parameters)
        except InferenceServerException as error:
            _close(client)
            raise TrtMtpError(f"{MODEL} stopped answering: {error.message()}") from None
        return stream

    def _next(self, stream: _Stream) -> Any:
        while not self._over.is_set():
            try:
                result, error = stream.replies.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if error is not None:
                raise TrtMtpError(f"{MODEL}: {error.message()}")
            return result
        raise TrtMtpError("the time for asking was over")


def inputs_of(ask: Ask) -> list[Any]:
    """The tensors of a request."""
    inputs = [tensor for tensor in tensors(ask.prompt) if ask.is_seeded or tensor.name() != SEED]
    if ask.stop:
        texts = np.array([text.encode() for text in ask.stop], np.object_)
        inputs.append(grpcclient.InferInput(STOP, [texts.size], "BYTES"))
        inputs[-1].set_data_from_numpy(texts)
    return inputs


def wait_until(is_so: Callable[[], bool], over: threading.Event, most_s: float) -> bool:
    """Whether it became so within `most_s` seconds, and before `over` was set."""
    deadline = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > deadline or over.wait(0.05):
            return False
    return True


def _close(client: Any) -> None:
    """End a stream; after STOP_S, drop it."""
    late = threading.Timer(STOP_S, client.stop_stream, kwargs={"cancel_requests": True})
    late.daemon = True
    late.start()
    client.stop_stream()
    late.cancel()
    client.close()


def _parameter(result: Any, name: str) -> str:
    parameters = result.get_response().parameters
    return str(parameters[name].string_param) if name in parameters else ""


def _said(results: Sequence[Any]) -> Said:
    last = results[-1]
    margin = last.as_numpy("margin")
    ids = [result.as_numpy("output_ids").tolist() for result in results]

    def number(name: str) -> int:
        return int(last.as_numpy(name)[0])

    return Said(
        text="".join(result.as_numpy("text_output")[0].decode() for result in results),
        token_ids=tuple(token for part in ids for token in part),
        num_messages=sum(bool(part) for part in ids),
        finish_reason=last.as_numpy("finish_reason")[0].decode(),
        num_output_tokens=number("num_output_tokens"),
        num_steps=number("num_steps"),
        num_accepted_draft_tokens=number("num_accepted_draft_tokens"),
        accepted_per_position=tuple(last.as_numpy("accepted_per_position").tolist()),
        seed=number("seed"),
        variant=_parameter(results[0], "variant"),
        failed_over=_parameter(last, "failed_over"),
        margin=None if margin is None else float(margin[0]),
    )
