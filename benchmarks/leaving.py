"""Clients that leave in the middle of their answers: what it costs, and whom.

`python -m benchmarks.leaving [--json] [--short]`

A real Triton hosts doubles of variants; the gateway runs as its own process. Clients begin one
answer after the other and leave, over gRPC and over HTTP, while two bystanders read whole answers.
Then the CPU engine with a single slot: how long after a client left does the next one's answer
begin, beside one that finds the slot free. Memory is the resident set, from proc(5).
"""

import asyncio
import http.client
import json
import re
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks._report import arguments, print_report
from benchmarks.gateway import quantile, started_gateway
from benchmarks.soak import MIB, WARM_UP_SHARE, connected, rss_bytes
from tests.gateway_fixtures import script_request, triton_of_doubles
from tests.variants import build_engines
from trt_mtp.serve.kserve import FINAL_BYTES
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

NUM_LEAVERS = {False: 100_000, True: 2_000}  # by --short
NUM_TURNS = {False: 300, True: 30}
NUM_AT_ONCE = 16
GENERATE = "/v2/models/qwen_mtp/generate_stream"
LONG: dict[str, Any] = {"tokens": 10**6, "delay_s": 0.005}
LATER_S = 30.0  # for one message

Leave = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients that left over one protocol."""

    protocol: str
    num_left: int
    left_per_s: float
    num_bystander_answers: int
    num_bystander_errors: int
    num_triton_crashes: int
    num_still_running: int
    gateway_mib: tuple[float, float]  # after a tenth of the leavers, after all
    triton_mib: tuple[float, float]  # tritonserver and its models


@dataclass(frozen=True, slots=True)
class Slot:
    """How long the next client waits for its first token, in ms."""

    protocol: str
    num_turns: int
    idle_p50_ms: float  # the slot was free
    after_leaving_p50_ms: float
    after_leaving_p99_ms: float


@dataclass(slots=True)
class Bystanders:
    """Who reads whole answers meanwhile."""

    address: str
    num_answers: int = 0
    errors: list[str] = field(default_factory=list)
    is_over: bool = False

    async def read(self) -> None:
        """One answer after the other, each compared, until it is over."""
        request = script_request(tokens=20, delay_s=0.005).SerializeToString()
        async with connected(self.address) as stream:
            while not self.is_over:
                call = stream()
                try:
                    async with asyncio.timeout(LATER_S):
                        await call.write(request)
                        messages = [await call.read() for _ in range(20)]
                        await call.done_writing()
                        await call.read()
                    is_whole = all(b"w%d" % i in raw for i, raw in enumerate(messages))
                    self.errors += [] if is_whole else ["wrong tokens"]
                except (grpc.aio.AioRpcError, TimeoutError, TypeError) as error:
                    self.errors.append(str(error))
                self.num_answers += 1


async def leave_grpc(stream: Any, request: bytes) -> None:
    """Read the first message, and cancel."""
    call = stream()
    await call.write(request)
    await call.read()
    call.cancel()


async def leave_http(address: str, request: bytes) -> None:
    """Read the first event, and close the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(LATER_S):
        await reader.readuntil(b"data: ")
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def http_request(address: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def ways_to_leave(
    stream: Any, over_grpc: bytes, address: str, over_http: bytes
) -> dict[str, Leave]:
    """By protocol."""
    return {
        "gRPC": lambda: leave_grpc(stream, over_grpc),
        "HTTP": lambda: leave_http(address, over_http),
    }


def triton_bytes(triton: TritonServer) -> int:
    """Resident memory of the server and its models."""
    return sum(map(rss_bytes, (triton.pid, *triton.stub_pids)))


def num_crashes(triton: TritonServer, pid: int) -> int:
    """Aborts that its log has, or that ended it."""
    aborts = triton.log.read_text(errors="replace").count("Signal (")
    return max(aborts, int(triton.pid != pid))


def num_in_flight(ready: dict[str, Any]) -> int:
    """Slots that the gateway counts as taken."""
    connection = http.client.HTTPConnection(ready["http"], timeout=LATER_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    counts = re.findall(r"^trt_mtp_gateway_requests_in_flight{.*} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


async def crowd(
    protocol: str,
    leave: Leave,
    triton: TritonServer,
    ready: dict[str, Any],
    pid: int,
    num_leavers: int,
) -> Crowd:
    """`num_leavers` clients that begin and leave, NUM_AT_ONCE of them at a time."""
    triton_pid, num_left = triton.pid, 0
    bystanders = Bystanders(ready["gateway"])
    staying = [asyncio.create_task(bystanders.read()) for _ in range(2)]
    memory: list[tuple[int, int]] = []

    async def worker() -> None:
        nonlocal num_left
        while num_left < num_leavers:
            num_left += 1
            if num_left == round(num_leavers * WARM_UP_SHARE):
                memory.append((rss_bytes(pid), triton_bytes(triton)))
            await leave()

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(NUM_AT_ONCE)))
    wall_s = time.perf_counter() - start
    bystanders.is_over = True
    await asyncio.gather(*staying)
    await asyncio.sleep(1.0)  # for the last ones' requests to end
    memory.append((rss_bytes(pid), triton_bytes(triton)))
    (gateway_before, triton_before), (gateway_after, triton_after) = memory
    return Crowd(
        protocol,
        num_left,
        round(num_left / wall_s, 1),
        bystanders.num_answers,
        len(bystanders.errors),
        num_crashes(triton, triton_pid),
        num_in_flight(ready),
        (round(gateway_before / MIB, 1), round(gateway_after / MIB, 1)),
        (round(triton_before / MIB, 1), round(triton_after / MIB, 1)),
    )


async def first_token_s(stream: Any, request: bytes) -> float:
    """Ask, and read the whole answer; the time to its first message."""
    call, start = stream(), time.perf_counter()
    await call.write(request)
    raw = await call.read()
    seconds = time.perf_counter() - start
    while FINAL_BYTES not in raw:
        raw = await call.read()
    await call.done_writing()
    await call.read()
    return seconds


async def slot(protocol: str, leave: Leave, address: str, num_turns: int) -> Slot:
    """The next client's first token, right after one left and with nobody before it."""
    idle_s, after_s = [], []
    request = engine_request(max_tokens=1).SerializeToString()
    async with connected(address) as stream:
        await first_token_s(stream, request)
        for _ in range(num_turns):
            idle_s.append(await first_token_s(stream, request))
            await leave()
            after_s.append(await first_token_s(stream, request))
    return Slot(
        protocol,
        num_turns,
        round(statistics.median(idle_s) * 1e3, 2),
        round(statistics.median(after_s) * 1e3, 2),
        round(quantile(after_s, 99) * 1e3, 2),
    )


def engine_request(max_tokens: int) -> Any:
    """A request to the CPU engine."""
    request = script_request(outputs=("text_output", "output_ids"))
    request.inputs.add(name="sampling_param_max_tokens", datatype="INT32", shape=[1])
    request.raw_input_contents.append(struct.pack("<i", max_tokens))
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def crowds(folder: Path, num_leavers: int) -> list[Crowd]:
    """Leavers among doubles, which answer as slowly as they are told."""
    with (
        triton_of_doubles(folder) as triton,
        started_gateway(triton.grpc_url, "--http-port", "0") as (ready, pid),
    ):
        script = json.dumps(LONG)
        over_http = http_request(ready["http"], {"text_input": script, "streaming": True})
        over_grpc = script_request(**LONG).SerializeToString()

        async def all_of_them() -> list[Crowd]:
            async with connected(ready["gateway"]) as stream:
                ways = ways_to_leave(stream, over_grpc, ready["http"], over_http)
                return [
                    await crowd(protocol, leave, triton, ready, pid, num_leavers)
                    for protocol, leave in ways.items()
                ]

        return asyncio.run(all_of_them())


def slots(folder: Path, num_turns: int) -> list[Slot]:
    """The engine's only slot."""
    engines = build_engines(folder, [0], max_batch_size=1)
    with (
        serving(resolve_variants([engines])) as triton,
        started_gateway(triton.grpc_url, "--http-port", "0") as (ready, _),
    ):
        body = {"text_input": "{}", "streaming": True, "sampling_param_max_tokens": 3000}
        over_http = http_request(ready["http"], body)
        over_grpc = engine_request(max_tokens=3000).SerializeToString()

        async def both() -> list[Slot]:
            async with connected(ready["gateway"]) as stream:
                ways = ways_to_leave(stream, over_grpc, ready["http"], over_http)
                return [
                    await slot(protocol, leave, ready["gateway"], num_turns)
                    for protocol, leave in ways.items()
                ]

        return asyncio.run(both())


def lines(crowds: list[Crowd], slots: list[Slot]) -> Iterator[str]:
    """The results for people."""
    for one in crowds:
        yield (
            f"{one.protocol}: {one.num_left:,} clients left, {one.left_per_s:.0f}/s; bystanders "
            f"{one.num_bystander_answers:,} answers, {one.num_bystander_errors} errors; "
            f"{one.num_triton_crashes} crashes of Triton; {one.num_still_running} left running; "
            f"memory after a tenth and after all: gateway {one.gateway_mib[0]:.1f}, "
            f"{one.gateway_mib[1]:.1f} MiB, Triton {one.triton_mib[0]:.0f}, "
            f"{one.triton_mib[1]:.0f} MiB"
        )
    for each in slots:
        yield (
            f"{each.protocol}: the next client's first token {each.after_leaving_p50_ms:.1f} ms "
            f"after one left (p99 {each.after_leaving_p99_ms:.1f}), {each.idle_p50_ms:.1f} ms with "
            f"nobody before it; {each.num_turns} turns"
        )


def main() -> None:
    """Leave, and print what came of it."""
    options = arguments(
        "Clients that leave: what it costs, and whom.", "2,000 leavers in place of 100,000"
    )
    with tempfile.TemporaryDirectory() as name:
        left = crowds(Path(name) / "doubles", NUM_LEAVERS[options.short])
        freed = slots(Path(name) / "engine", NUM_TURNS[options.short])
    results = {"crowds": list(map(asdict, left)), "slots": list(map(asdict, freed))}
    print_report(options.json, results, lines(left, freed))


if __name__ == "__main__":
    main()
