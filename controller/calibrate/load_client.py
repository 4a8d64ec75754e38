"""A client that loads one model: streams over grpc.aio, times taken on bytes, parsed afterwards.

While answers stream in nothing is parsed: a message costs a clock and a search for the mark of the
last one, so that what is measured is the server. Answers that failed are values, not exceptions.
"""

import asyncio
import itertools
import json
import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.calibrate.load_streams import LoadStreams, RawAnswer
from trt_mtp.controller.client import Prompt
from trt_mtp.controller.gateway.servers.backend import CALL_TIMEOUT_S
from trt_mtp.controller.gateway.servers.upstream import Upstream, UpstreamLost
from trt_mtp.controller.gateway.servers.winding_down import Rest, wind_down
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import CANCEL
from trt_mtp.serve.kserve import (
    EMPTY_FINAL,
    ends_answer,
    int_outputs,
    parse_message,
    parse_stream_response,
    read_request,
)

ANSWER_TIMEOUT_S = 600.0  # for one answer of a server that sends others
LEAVE_S = 1.5  # for what is in flight when we are interrupted
OUTPUTS = (
    "text_output",
    "output_ids",
    "num_input_tokens",
    "num_output_tokens",
    "num_steps",
    "accepted_per_position",
    "cut_after",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's times and counters; with an `error` the rest says nothing."""

    ttft_s: float = 0.0  # from sending to the first message with a token
    decode_s: float = 0.0  # from there to the last message with a token
    num_first_tokens: int = 0  # of the first message
    num_output_tokens: int = 0
    num_input_tokens: int = 0
    num_steps: int = 0  # verify steps after the prompt
    accepted_per_position: tuple[int, ...] = ()
    itl_s: tuple[float, ...] = ()  # between two messages with tokens
    error: str = ""
    is_lost: bool = False  # the connection failed, not this request
    cut_after: int = -1  # drafts accepted in a last step that the answer's end cut; -1: none was

    @property
    def tpot_s(self) -> float:
        """Seconds per token after the first message; 0 if there was none."""
        rest = self.num_output_tokens - self.num_first_tokens
        return self.decode_s / rest if rest > 0 else 0.0

    @property
    def step_s(self) -> float:
        """Seconds per step after the first message; 0 if there was none.

        Of the steps after the prompt, those whose tokens the first message brought along are
        left out, by their share of the tokens.
        """
        rest = self.num_output_tokens - self.num_first_tokens
        steps = self.num_steps * rest / max(self.num_output_tokens - 1, 1)
        return self.decode_s / steps if steps > 0 else 0.0


def request_bytes(model: str, prompt: Prompt) -> bytes:
    """The ModelInferRequest for `prompt`, by the contract of trt_mtp.serve.contract."""
    request = pb.ModelInferRequest(model_name=model)
    request.parameters[EMPTY_FINAL].bool_param = True
    for key, value in prompt.parameters.items():
        request.parameters[key].string_param = value
    tensors = {
        "messages": ("BYTES", _text(json.dumps(prompt.messages))),
        "streaming": ("BOOL", b"\1"),
        "sampling_param_max_tokens": ("INT32", struct.pack("<i", prompt.max_tokens)),
        "sampling_param_temperature": ("FP32", struct.pack("<f", prompt.temperature)),
        "sampling_param_seed": ("UINT64", struct.pack("<Q", prompt.seed)),
    }
    if prompt.tools:
        tensors["tools"] = ("BYTES", _text(json.dumps(prompt.tools)))
    for name, (datatype, content) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(content)
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def _text(value: str) -> bytes:
    content = value.encode()
    return len(content).to_bytes(4, "little") + content


@dataclass(frozen=True, slots=True)
class Batch:
    """The answers to some requests, in their order."""

    answers: tuple[Answer, ...]
    elapsed_s: float  # until the last of them

    @property
    def lost(self) -> str:
        """The reason why the server was lost; empty if it was not."""
        return next((answer.error for answer in self.answers if answer.is_lost), "")


@dataclass(frozen=True, slots=True)
class Target:
    """A model, as it is told to end a request."""

    model_name: str
    can_cancel: bool


class LoadClient:
    """A connection to a Triton server or the gateway. Make it inside the event loop."""

    def __init__(self, url: str) -> None:
        """`url` is host:port."""
        self._streams = LoadStreams(url)
        self._targets: dict[str, Target] = {}

    async def close(self) -> None:
        """Close the connection, in CLOSE_S and a little at most."""
        await self._streams.close()

    async def answers(self, requests: Sequence[bytes], concurrency: int) -> Batch:
        """The answers to `requests`, in their order, with `concurrency` in flight throughout.

        While the last ones are answered, earlier requests are sent again and thrown away, or they
        would run at a lower load than the rest. They are over when this returns. A server that is
        lost or stops answering ends the batch in seconds.
        """
        await self._streams.connect()
        names = [read_request(raw).message.model_name for raw in requests]
        targets = {name: await self._target(name) for name in dict.fromkeys(names)}
        run = _Run(self._streams, requests, [targets[name] for name in names])
        watching = asyncio.create_task(self._streams.watch())
        try:
            elapsed_s = await run.measure(concurrency)
            await run.wind_down()
        except asyncio.CancelledError:
            await run.wind_down(LEAVE_S)
            raise
        finally:
            watching.cancel()
        batch = Batch(tuple(map(parse, run.raw)), elapsed_s)
        if batch.lost:
            self._streams.lose(batch.lost)  # its channel would wait before it connects again
            self._targets.clear()  # who comes back may know less
        return batch

    async def _target(self, name: str) -> Target:
        """Can model `name` be told to end a request? One that says nothing of itself can't."""
        if name not in self._targets:
            request = pb.ModelConfigRequest(name=name).SerializeToString()
            try:
                raw = await self._streams.call("ModelConfig", request, CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return Target(name, can_cancel=False)
            config = parse_message(pb.ModelConfigResponse, raw).config
            can_cancel = any(tensor.name == CANCEL for tensor in config.input)
            self._targets[name] = Target(name, can_cancel)
        return self._targets[name]


class _Run:
    """One batch at work: its requests, then earlier ones again, until all are answered."""

    def __init__(
        self, streams: LoadStreams, requests: Sequence[bytes], targets: Sequence[Target]
    ) -> None:
        self.raw = [RawAnswer() for _ in requests]
        self._streams = streams
        self._requests = requests
        self._targets = targets
        self._ids = secrets.token_hex(8)
        self._indices = itertools.count()
        self._left = set(range(len(requests)))
        self._in_flight: dict[Upstream, tuple[Target, str]] = {}
        self._ending: set[asyncio.Task[Rest]] = set()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        streams.lost = ""

    async def measure(self, concurrency: int) -> float:
        """The seconds that it took; what is still in flight then is for `wind_down`.

        Bounded by those of `_ask` and of the streams' `watch`.
        """
        start_s = time.perf_counter()
        workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]
        try:
            await self._over
            return time.perf_counter() - start_s
        finally:
            for worker in workers:
                worker.cancel()

    async def wind_down(self, timeout_s: float | None = None) -> None:
        """End what is in flight, and read it to its end; what isn't over by then is given up.

        Without `timeout_s` the bounds of gateway/winding_down.py hold.
        """
        while self._in_flight:
            upstream, (target, request_id) = self._in_flight.popitem()
            ending = wind_down(self._streams, upstream, target, request_id)
            self._ending.add(asyncio.create_task(ending))
        if self._ending:
            over, late = await asyncio.wait(self._ending, timeout=timeout_s)
            if late or any(task.exception() for task in over):
                self._streams.lose("its answers did not end")

    async def _work(self) -> None:
        """Answer one request after the other, on one stream."""
        try:
            upstream = self._streams.take_stream()
            while not self._over.done():
                index = next(self._indices)
                kept = self.raw[index] if index < len(self.raw) else RawAnswer()
                await self._answer(index, upstream, kept)
                if kept.is_lost:
                    self._lose(kept.error)
                    return
                self._left.discard(index)
                if not self._left:
                    self._end()
            self._streams.give_back(upstream)
        except Exception as error:  # or nobody would see it
            self._end(error)

    async def _answer(self, index: int, upstream: Upstream, into: RawAnswer) -> None:
        """Ask for one answer; what fails is said in `into`."""
        at, request_id = index % len(self._requests), f"{self._ids}/{index}"
        request = _with_id(self._requests[at], request_id)
        self._in_flight[upstream] = self._targets[at], request_id
        try:
            await _ask(upstream, request, request_id, into)
        except TimeoutError:
            into.error, into.is_lost = f"no whole answer within {ANSWER_TIMEOUT_S:.0f} s", True
            self._streams.drop(upstream)
        except UpstreamLost as error:
            into.error, into.is_lost = self._streams.lost or error.details or str(error), True
        except InputError as error:
            into.error, into.is_lost = str(error), True
            self._streams.drop(upstream)
        del self._in_flight[upstream]

    def _lose(self, reason: str) -> None:
        """The server is lost, and with it what it has not answered yet."""
        for index in self._left:
            answer = self.raw[index]
            answer.error, answer.is_lost = answer.error or reason, True
        self._end()

    def _end(self, error: Exception | None = None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)


async def _ask(upstream: Upstream, request: bytes, request_id: str, into: RawAnswer) -> None:
    """Send a request and read its answer; raises TimeoutError, UpstreamLost, InputError."""
    upstream.call.into = into
    upstream.begin(request)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while not ends_answer(await upstream.read(), request_id):
            pass


def _with_id(request: bytes, request_id: str) -> bytes:
    return request + bytes(pb.ModelInferRequest(id=request_id).SerializeToString())


def parse(raw: RawAnswer) -> Answer:
    """The answer in the messages."""
    if raw.error:
        return Answer(error=raw.error, is_lost=raw.is_lost)
    times: list[float] = []
    first_tokens = num_tokens = 0
    last: dict[str, tuple[int, ...]] = {}
    for arrived, message in zip(raw.arrived_s, raw.messages, strict=True):
        response = parse_stream_response(message)
        if response.error_message:
            return Answer(error=response.error_message)
        values = int_outputs(response.infer_response, OUTPUTS)
        new = len(values.get("output_ids", ()))
        if new:
            first_tokens = first_tokens or new
            num_tokens += new
            times.append(arrived)
        last |= {name: value for name, value in values.items() if name != "output_ids"}
    if not times:
        return Answer(error="the answer has no token, or no output_ids")
    return Answer(
        ttft_s=times[0] - raw.sent_s,
        decode_s=times[-1] - times[0],
        num_first_tokens=first_tokens,
        num_output_tokens=num_tokens,
        num_input_tokens=_number(last, "num_input_tokens"),
        num_steps=_number(last, "num_steps"),
        accepted_per_position=last.get("accepted_per_position", ()),
        cut_after=next(iter(last.get("cut_after", ())), -1),
        itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
    )


def _number(values: dict[str, tuple[int, ...]], name: str) -> int:
    elements = values.get(name, ())
    return elements[0] if elements else 0
