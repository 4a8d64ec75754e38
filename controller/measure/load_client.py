"""A client that loads one model: streams over grpc.aio, times taken on bytes, parsed afterwards.

While answers stream in nothing is parsed: a message costs a clock and a search for the mark of the
last one, so that what is measured is the server. Answers that failed are values, not exceptions.
"""

import asyncio
import itertools
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.gateway.kserve import (
    EMPTY_FINAL,
    FINAL_BYTES,
    int_outputs,
    is_final,
    parse_stream_response,
)
from trt_mtp.controller.gateway.triton_channel import TritonChannel
from trt_mtp.errors import InputError

ANSWER_TIMEOUT_S = 600.0
OUTPUTS = (
    "text_output",
    "output_ids",
    "num_input_tokens",
    "num_output_tokens",
    "num_steps",
    "accepted_per_position",
)
_ERROR = 0x0A  # tag of ModelStreamInferResponse.error_message


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

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first message; 0 for an answer that has no more."""
        rest = self.num_output_tokens - self.num_first_tokens
        return self.decode_s / rest if rest > 0 else 0.0

    @property
    def step_s(self) -> float:
        """Seconds a step after the first message; 0 where there was none.

        Of the steps after the prompt, those whose tokens the first message brought along are
        left out, by their share of the tokens.
        """
        rest = self.num_output_tokens - self.num_first_tokens
        steps = self.num_steps * rest / max(self.num_output_tokens - 1, 1)
        return self.decode_s / steps if steps > 0 else 0.0


@dataclass(slots=True)
class RawAnswer:
    """What came in, as it came in."""

    sent_s: float = 0.0
    arrived_s: list[float] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    error: str = ""
    is_lost: bool = False


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


class LoadClient:
    """A connection to a Triton server or the gateway. Make it inside the event loop."""

    def __init__(self, url: str) -> None:
        """`url` is host:port."""
        self._channel = TritonChannel(url)

    async def close(self) -> None:
        """Close the connection; answers in flight end."""
        await self._channel.close()

    async def answers(self, requests: Sequence[bytes], concurrency: int) -> list[Answer]:
        """The answers to `requests`, in their order, with `concurrency` in flight throughout.

        While the last ones are answered, earlier requests are sent again and thrown away, or they
        would run at a lower load than the rest.
        """
        raw = [RawAnswer() for _ in requests]
        indices, left, all_done = itertools.count(), len(requests), asyncio.Event()

        async def worker() -> None:
            nonlocal left
            call = self._channel.stream()
            try:
                for index in indices:
                    kept = raw[index] if index < len(raw) else RawAnswer()
                    await _ask(call, requests[index % len(requests)], kept)
                    if index < len(raw):
                        left -= 1
                        if left == 0:
                            all_done.set()
                    if kept.is_lost:
                        if index >= len(raw):
                            return
                        call = self._channel.stream()
            except Exception:
                all_done.set()  # or nobody would see it
                raise
            finally:
                call.cancel()

        workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
        await all_done.wait()
        for task in workers:
            task.cancel()
        for ended in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        return [parse(answer) for answer in raw]


async def _ask(call: Any, request: bytes, into: RawAnswer) -> None:
    """Send a request and read its answer; what fails is said in `into`."""
    clock, arrived, messages = time.perf_counter, into.arrived_s, into.messages
    into.sent_s = clock()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await call.write(request)
            while True:
                raw = await call.read()
                if raw is grpc.aio.EOF:
                    into.error, into.is_lost = "the server ended the stream", True
                    return
                arrived.append(clock())
                messages.append(raw)
                if (FINAL_BYTES in raw or raw[0] == _ERROR) and is_final(
                    parse_stream_response(raw)
                ):
                    return
    except TimeoutError:
        into.error, into.is_lost = f"no whole answer within {ANSWER_TIMEOUT_S:.0f} s", True
    except grpc.aio.AioRpcError as error:
        into.error, into.is_lost = error.details() or str(error.code()), True
    except InputError as error:
        into.error = str(error)
    except asyncio.InvalidStateError:  # the call ended while it was written to
        into.error, into.is_lost = "the connection was lost", True


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
        itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
    )


def _number(values: dict[str, tuple[int, ...]], name: str) -> int:
    found = values.get(name, ())
    return found[0] if found else 0
