"""What the OpenAI door costs beside the gRPC one: the same gateway and answers, interleaved.

`python -m benchmarks.openai_door [--json] [--short]`

A real Triton hosts doubles of variants that answer at once, so that nothing but the way of the
messages is measured. The client counts server-sent events in what plain sockets bring, in Python,
where gRPC is read in C: the gateway's processor time has none of that. All share this machine:
ratios tell something, absolute times don't.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks._report import arguments, print_report
from benchmarks.gateway import Case, Run, Target, cpu_s, measure, quantile, started_gateway
from benchmarks.soak import rss_bytes
from tests.gateway_fixtures import triton_of_doubles
from trt_mtp.controller.gateway.http.generate_json import generate_request
from trt_mtp.controller.gateway.openai.answer_reader import OUTPUTS, AnswerReader
from trt_mtp.controller.gateway.openai.asked import DEFAULT_TEMPERATURE, Asked, BodyReader
from trt_mtp.controller.gateway.openai.chunks import Chunks
from trt_mtp.controller.gateway.openai.model_names import ModelNames
from trt_mtp.serve.contract import REST_OF_CONTEXT
from trt_mtp.serve.kserve import response_change

CASES = (
    Case("one client, 16 tokens", 1, 16, 150, True),
    Case("64 streams, 64 tokens", 64, 64, 192, True),
    Case("64 streams, 1 token", 64, 1, 512, True),
)
PROMPT = "Write a function that parses a date, with type hints and a test. " * 8
NUM_FRAMES = 200_000
LONG_BODY_BYTES = 1_000_000
NUM_BODIES = 20
EVENT, LAST = b"data: ", b"[DONE]\n\n\r\n0\r\n\r\n"
NUM_SLOW_READERS = 16
SLOW_WORD = "x" * 10_000  # a token
SLOW_TOKENS = 1_000  # 10 MB of an answer that is not read
SLOW_S = 6.0  # in which nothing is read
TOKEN_S = 0.005  # between the tokens of the stream that long bodies may hold up


@dataclass(frozen=True, slots=True)
class Result:
    """A case's runs compared; `low` and `high` are the extremes of the repetitions."""

    case: str
    throughput_ratio: float  # OpenAI / gRPC
    throughput_ratio_low: float
    throughput_ratio_high: float
    added_ttft_p50_ms: float
    cpu_ratio: float  # of the gateway's processor time, OpenAI / gRPC


class HttpClient(asyncio.Protocol):
    """One connection, kept open, for one request at a time."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._times: list[float] = []
        self._tail = b""

    async def connect(self) -> None:
        """Open it."""
        loop = asyncio.get_running_loop()
        self._is_over = loop.create_future()
        self._transport, _ = await loop.create_connection(lambda: self, self._host, int(self._port))

    def close(self) -> None:
        """Close it; what is waited for is over."""
        self._is_over.cancel()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Note the events in `data`, whose first one may have begun before it."""
        number = (self._tail[-len(EVENT) + 1 :] + data).count(EVENT)
        self._times += [time.perf_counter()] * number
        self._tail = (self._tail + data)[-len(LAST) :]
        if self._tail == LAST:
            self._is_over.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """A request that waits fails."""
        if not self._is_over.done():
            self._is_over.set_exception(error or ConnectionError("the gateway closed it"))

    async def events(self, body: bytes) -> list[float]:
        """When each event of the answer to `body` came."""
        self.ask(body)
        await self._is_over
        return self._times

    def ask(self, body: bytes) -> None:
        """Send a request."""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._times, self._tail = [], b""
        self._is_over = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)

    def leave_unread(self) -> None:
        """Read nothing from now on."""
        self._transport.pause_reading()


def chat(num_tokens: int, **script: Any) -> bytes:
    """A streamed request of that many tokens."""
    text = json.dumps({"tokens": num_tokens, "text": PROMPT, **script})
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "qwen_mtp", "messages": messages, "stream": True}).encode()


def same_over_grpc(num_tokens: int) -> bytes:
    """What the OpenAI door makes of `chat`, so that variants have the same to do."""
    values = {
        "messages": json.dumps(json.loads(chat(num_tokens))["messages"]),
        "streaming": True,
        "sampling_param_max_tokens": REST_OF_CONTEXT,
        "sampling_param_temperature": DEFAULT_TEMPERATURE,
    }
    message = generate_request(values, "qwen_mtp")
    for name in OUTPUTS:
        message.outputs.add(name=name)
    return bytes(message.SerializeToString())


async def measure_http(address: str, case: Case) -> Run:
    """One run of a case over HTTP."""
    run, left, body = Run(), case.num_requests, chat(case.num_tokens)
    clients = [HttpClient(address) for _ in range(case.concurrency)]
    await asyncio.gather(*(client.connect() for client in clients))

    async def worker(client: HttpClient) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            times = await client.events(body)
            run.ttft_s.append(times[0] - start)

    start = time.perf_counter()
    await asyncio.gather(*(worker(client) for client in clients))
    run.wall_s = time.perf_counter() - start
    for client in clients:
        client.close()
    return run


def run_case(case: Case, ready: dict[str, Any], pid: int, num_repetitions: int) -> Result:
    """All repetitions of a case, the doors taking turns; one before them doesn't count."""
    target = Target(ready["gateway"], same_over_grpc(case.num_tokens), case.num_tokens)
    pairs = []
    for repetition in range(num_repetitions + 1):
        runs: dict[str, Run] = {}
        for name in ("grpc", "http") if repetition % 2 else ("http", "grpc"):
            before = cpu_s(pid)
            way = measure(target, case) if name == "grpc" else measure_http(ready["http"], case)
            runs[name] = asyncio.run(way)
            runs[name].cpu_s = cpu_s(pid) - before
        if repetition:
            pairs.append((runs["grpc"], runs["http"]))
    ratios = [grpc.wall_s / http.wall_s for grpc, http in pairs]
    added = [quantile(http.ttft_s, 50) - quantile(grpc.ttft_s, 50) for grpc, http in pairs]
    cpu = [http.cpu_s / grpc.cpu_s for grpc, http in pairs if grpc.cpu_s]
    return Result(
        case.name,
        round(statistics.median(ratios), 3),
        round(min(ratios), 3),
        round(max(ratios), 3),
        round(statistics.median(added) * 1e3, 2),
        round(statistics.median(cpu), 2),
    )


def frame_us() -> float:
    """Processor time to make a chunk of a message that gRPC's clients would have got."""
    from tritonclient.grpc import service_pb2 as pb

    asked = Asked(
        "chatcmpl-1", True, "qwen_mtp", "fp_0", 0, 1, True, False, False, False, False, ()
    )
    response = pb.ModelStreamInferResponse()
    response.infer_response.MergeFromString(response_change("qwen_mtp", "", {"variant": "k3"}))
    response.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.infer_response.raw_output_contents.append(b"\x05\0\0\0 word")
    raw = response.SerializeToString()
    reader, chunks = AnswerReader(), Chunks(asked, 0)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for _ in range(NUM_FRAMES):
            chunks.text(reader.read(raw))
        best = min(best, time.process_time() - start)
    return best / NUM_FRAMES * 1e6


def body_cpu_ms(body: bytes, number: int) -> float:
    """Processor time to read a request; a long one is read in a thread."""
    pool: Any = SimpleNamespace(public_name="qwen_mtp", variants={})
    reader = BodyReader(pool.public_name, ModelNames(pool, ()))
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(number):
            reader.chat({}, body)
        best = min(best, time.process_time() - start)
    return best / number * 1e3


async def longest_gaps(address: str) -> tuple[float, float]:
    """The longest pause between two events of a slow stream, alone and beside long bodies, in s."""
    stream, other = HttpClient(address), HttpClient(address)
    await asyncio.gather(stream.connect(), other.connect())
    gaps = []
    slow = chat(NUM_BODIES * 10, delay_s=TOKEN_S)
    for with_bodies in (False, True):
        times = asyncio.create_task(stream.events(slow))
        if with_bodies:
            long = chat(1, padding="x" * LONG_BODY_BYTES)
            for _ in range(NUM_BODIES):
                await other.events(long)
        came = await times
        gaps.append(max(after - before for before, after in pairwise(came)))
    stream.close()
    other.close()
    return gaps[0], gaps[1]


async def slow_readers_mb(address: str, pid: int) -> float:
    """How much memory a gateway takes for streams of 10 MB each that nobody reads."""
    before_bytes = rss_bytes(pid)
    clients = [HttpClient(address) for _ in range(NUM_SLOW_READERS)]
    for client in clients:
        await client.connect()
        client.leave_unread()
        client.ask(chat(SLOW_TOKENS, word=SLOW_WORD))
    peak_bytes = before_bytes
    end_at = time.monotonic() + SLOW_S
    while time.monotonic() < end_at:
        await asyncio.sleep(0.1)
        peak_bytes = max(peak_bytes, rss_bytes(pid))
    for client in clients:
        client.close()
    await asyncio.sleep(0)
    return (peak_bytes - before_bytes) / 1e6


def lines(results: list[Result], costs: dict[str, float]) -> Iterator[str]:
    """The results for people."""
    yield f"{'case':24} {'throughput, OpenAI/gRPC':>26} {'added TTFT p50':>15} {'CPU ratio':>10}"
    for result in results:
        ratio = (
            f"{result.throughput_ratio:.2f} ({result.throughput_ratio_low:.2f} to "
            f"{result.throughput_ratio_high:.2f})"
        )
        yield (
            f"{result.case:24} {ratio:>26} {result.added_ttft_p50_ms:12.2f} ms"
            f" {result.cpu_ratio:10.2f}"
        )
    for name, value in costs.items():
        yield f"{name.replace('_', ' ')}: {value:.2f}"


def main() -> None:
    """Run the cases and print what they gave."""
    options = arguments(
        "What the OpenAI door costs beside gRPC.", "two repetitions in place of seven"
    )
    with (
        tempfile.TemporaryDirectory() as name,
        triton_of_doubles(Path(name)) as triton,
        started_gateway(triton.grpc_url, "--http-port", "0") as (ready, pid),
    ):
        number = 2 if options.short else 7
        results = [run_case(case, ready, pid, number) for case in CASES]
        alone_s, beside_s = asyncio.run(longest_gaps(ready["http"]))
        slow_mb = asyncio.run(slow_readers_mb(ready["http"], pid))
    costs = {
        "frame_cpu_us": round(frame_us(), 2),
        "request_cpu_ms": round(body_cpu_ms(chat(64), 500), 3),
        "1_MB_request_cpu_ms": round(body_cpu_ms(chat(1, padding="x" * LONG_BODY_BYTES), 5), 2),
        "longest_gap_alone_ms": round(alone_s * 1e3, 1),
        "longest_gap_beside_1_MB_bodies_ms": round(beside_s * 1e3, 1),
        "MB_for_16_unread_streams_of_10_MB": round(slow_mb, 1),
    }
    print_report(
        options.json,
        {"cases": [asdict(result) for result in results], "costs": costs},
        lines(results, costs),
    )


if __name__ == "__main__":
    main()
