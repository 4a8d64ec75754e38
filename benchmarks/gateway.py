"""What the gateway costs: the same requests to Triton directly and through it, interleaved.

`python -m benchmarks.gateway [--json] [--short]`

A real Triton hosts doubles of variants that answer at once, so that nothing but the way of the
messages is measured; the gateway runs as its own process with the real policy. The client, Triton
and the gateway share this machine: ratios and processor time tell something, absolute speeds don't.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.controller.gateway.kserve import SERVICE

MODELS = {"direct": "qwen_mtp_k3", "gateway": "qwen_mtp"}
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PROMPT = "Write a function that parses a date, with type hints and a test. " * 8


@dataclass(frozen=True, slots=True)
class Case:
    """A way of sending requests."""

    name: str
    concurrency: int
    num_tokens: int  # of each answer
    num_requests: int  # of each run
    is_persistent: bool  # one stream for all requests of a worker, as tritonclient has


CASES = (
    Case("one client", 1, 16, 150, True),
    Case("one client, a stream for each request", 1, 16, 150, False),
    Case("64 streams, 64 tokens", 64, 64, 192, True),
    Case("64 streams, 1 token", 64, 1, 512, True),
    Case("32 clients, a stream for each 1-token request", 32, 1, 384, False),
)


@dataclass(slots=True)
class Run:
    """What one run of a case measured."""

    wall_s: float = 0.0
    cpu_s: float = 0.0  # of the gateway
    ttft_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """A case's runs compared; `low` and `high` are the extremes of the repetitions."""

    case: str
    requests: int  # through the gateway, in all repetitions
    throughput_ratio: float  # gateway / direct
    throughput_ratio_low: float
    throughput_ratio_high: float
    added_ttft_p50_ms: float
    added_ttft_p99_ms: float
    cpu_us_per_request: float
    cpu_us_per_token: float  # all of the gateway's time spread over the tokens


async def ask(call: Any, request: bytes, num_tokens: int, run: Run) -> None:
    """Send a request and read all of its answer."""
    start = time.perf_counter()
    await call.write(request)
    for index in range(num_tokens):
        if await call.read() is grpc.aio.EOF:
            raise RuntimeError(f"the stream ended: {await call.details()}")
        if index == 0:
            run.ttft_s.append(time.perf_counter() - start)


async def measure(target: str, model: str, case: Case) -> Run:
    """One run of a case against one target."""
    message = script_request(model, outputs=("text_output",), tokens=case.num_tokens, text=PROMPT)
    request, run, left = message.SerializeToString(), Run(), case.num_requests
    async with grpc.aio.insecure_channel(target) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        await channel.unary_unary(f"/{SERVICE.full_name}/ServerLive")(b"")

        async def worker() -> None:
            nonlocal left
            call = None
            while left > 0:
                left -= 1
                call = call or stream()
                await ask(call, request, case.num_tokens, run)
                if not case.is_persistent:
                    await call.done_writing()
                    await call.read()
                    call = None
            if call is not None:
                await call.done_writing()
                await call.read()

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(case.concurrency)))
        run.wall_s = time.perf_counter() - start
    return run


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, from proc(5) /proc/PID/stat."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / CLOCK_TICKS


def run_case(case: Case, targets: dict[str, str], pid: int, num_repetitions: int) -> Result:
    """All repetitions of a case, the targets taking turns; one before them doesn't count."""
    runs: dict[str, list[Run]] = {name: [] for name in targets}
    for repetition in range(num_repetitions + 1):
        order = list(targets) if repetition % 2 else list(reversed(targets))
        for name in order:
            before = cpu_s(pid)
            run = asyncio.run(measure(targets[name], MODELS[name], case))
            run.cpu_s = cpu_s(pid) - before
            if repetition:
                runs[name].append(run)
    return compared(case, runs)


def compared(case: Case, runs: dict[str, list[Run]]) -> Result:
    """The gateway's runs against their neighbours."""
    pairs = list(zip(runs["direct"], runs["gateway"], strict=True))
    ratios = [direct.wall_s / gateway.wall_s for direct, gateway in pairs]

    def added_ms(percentile: int) -> float:
        return round(
            statistics.median(
                quantile(gateway.ttft_s, percentile) - quantile(direct.ttft_s, percentile)
                for direct, gateway in pairs
            )
            * 1e3,
            2,
        )

    cpu_us = statistics.median(g.cpu_s for _, g in pairs) / case.num_requests * 1e6
    return Result(
        case.name,
        case.num_requests * len(pairs),
        round(statistics.median(ratios), 3),
        round(min(ratios), 3),
        round(max(ratios), 3),
        added_ms(50),
        added_ms(99),
        round(cpu_us, 1),
        round(cpu_us / case.num_tokens, 1),
    )


def quantile(values: list[float], percentile: int) -> float:
    """The value below which `percentile` of 100 lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[percentile - 1]


def pure_costs(results: list[Result]) -> dict[str, float]:
    """A further token and a request with one token on an open stream, in CPU-µs of the gateway."""
    by_name = {result.case: result for result in results}
    long, short = by_name["64 streams, 64 tokens"], by_name["64 streams, 1 token"]
    per_token = (long.cpu_us_per_request - short.cpu_us_per_request) / 63
    fresh = by_name["32 clients, a stream for each 1-token request"]
    return {
        "cpu_us_per_further_token": round(per_token, 1),
        "cpu_us_per_request_on_an_open_stream": short.cpu_us_per_request,
        "cpu_us_per_request_with_its_own_stream": fresh.cpu_us_per_request,
    }


@contextmanager
def gateway_process(triton: str) -> Iterator[tuple[str, int]]:
    """`trt-mtp gateway` in front of `triton`: its address and process id."""
    command = [sys.executable, "-m", "trt_mtp", "gateway", "--triton", triton]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["gateway"], process.pid
    finally:
        process.terminate()
        process.wait(60)


def print_table(results: list[Result], costs: dict[str, float]) -> None:
    """The results for people."""
    print(
        f"{'case':46} {'throughput, gateway/direct':>28} {'added TTFT p50':>15} {'p99':>9}"
        f" {'CPU-µs/request':>15} {'CPU-µs/token':>13}"
    )
    for result in results:
        ratio = (
            f"{result.throughput_ratio:.2f} ({result.throughput_ratio_low:.2f} to "
            f"{result.throughput_ratio_high:.2f})"
        )
        print(
            f"{result.case:46} {ratio:>28} {result.added_ttft_p50_ms:12.2f} ms"
            f" {result.added_ttft_p99_ms:6.2f} ms {result.cpu_us_per_request:15.0f}"
            f" {result.cpu_us_per_token:13.0f}"
        )
    for name, value in costs.items():
        print(f"{name.replace('_', ' ')}: {value:.0f}")


def main() -> None:
    """Run the cases and print what they gave."""
    parser = argparse.ArgumentParser(description="What the gateway costs beside direct Triton.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="two repetitions in place of seven")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        triton_of_doubles(Path(folder) / "triton") as triton,
        gateway_process(triton.grpc_url) as (address, pid),
    ):
        targets = {"direct": triton.grpc_url, "gateway": address}
        num_repetitions = 2 if options.short else 7
        results = [run_case(case, targets, pid, num_repetitions) for case in CASES]
    costs = pure_costs(results)
    if options.json:
        cases = [asdict(result) for result in results]
        print(json.dumps({"schema_version": 1, "cases": cases, "costs": costs}))
    else:
        print_table(results, costs)


if __name__ == "__main__":
    main()
