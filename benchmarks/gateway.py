"""What the gateway costs: the same requests to Triton directly and through it, interleaved.

`python -m benchmarks.gateway [--json] [--short] [--pinned]`

A real Triton hosts doubles of variants that answer at once, so that nothing but the way of the
messages is measured; then the CPU engine at draft lengths 0 and 3, where the engine is what is
saturated. The gateway runs as its own process with the real policy. The client, Triton and the
gateway share this machine: ratios and processor time tell something, absolute speeds don't. With
`--pinned` the gateway has a core of its own, and client and Triton share another, asked directly or
not. Beside the gateway's processor time stands tritonserver's own for the same messages, without
the processes of its models.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from benchmarks._report import arguments, print_report
from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.controller.calibrate.load_client import request_bytes
from trt_mtp.controller.client import Prompt
from trt_mtp.controller.up import TINY_CHECKPOINT, build
from trt_mtp.serve.kserve import FINAL_BYTES, SERVICE
from trt_mtp.serve.serving import resolve_variants, serving

MODELS = {"direct": "qwen_mtp_k3", "gateway": "qwen_mtp"}
ENGINE_LENGTHS, NUM_TOKENS = (0, 3), 64
ENGINE_PROMPT = Prompt(
    [{"role": "user", "content": "Write a story about a lighthouse."}], max_tokens=NUM_TOKENS
)
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
    triton_s: float = 0.0  # processor time of tritonserver
    num_messages: int = 0
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
    cpu_us_per_message: float  # the same over the messages, of which one may have several tokens
    triton_us_per_message: float  # of tritonserver, asked directly


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask for what."""

    address: str
    request: bytes
    num_messages: int | None  # of the answer; None: until the last one says so


async def ask(call: Any, target: Target, run: Run) -> None:
    """Send a request and read all of its answer."""
    start, num = time.perf_counter(), 0
    await call.write(target.request)
    while True:
        raw = await call.read()
        if raw is grpc.aio.EOF:
            raise RuntimeError(f"the stream ended: {await call.details()}")
        if num == 0:
            run.ttft_s.append(time.perf_counter() - start)
        num += 1
        run.num_messages += 1
        if num == target.num_messages or (target.num_messages is None and FINAL_BYTES in raw):
            return


async def measure(target: Target, case: Case) -> Run:
    """One run of a case against one target."""
    run, left = Run(), case.num_requests
    async with grpc.aio.insecure_channel(target.address) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        await channel.unary_unary(f"/{SERVICE.full_name}/ServerLive")(b"")

        async def worker() -> None:
            nonlocal left
            call = None
            while left > 0:
                left -= 1
                call = call or stream()
                await ask(call, target, run)
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


def run_case(
    case: Case, targets: dict[str, Target], pids: tuple[int, int], num_repetitions: int
) -> Result:
    """All repetitions of a case, the targets taking turns; one before them doesn't count.

    `pids` are those of the gateway and of tritonserver.
    """
    runs: dict[str, list[Run]] = {name: [] for name in targets}
    for repetition in range(num_repetitions + 1):
        order = list(targets) if repetition % 2 else list(reversed(targets))
        for name in order:
            before = [cpu_s(pid) for pid in pids]
            run = asyncio.run(measure(targets[name], case))
            run.cpu_s, run.triton_s = (
                cpu_s(pid) - spent for pid, spent in zip(pids, before, strict=True)
            )
            if repetition:
                runs[name].append(run)
    return compared(case, runs)


def compared(case: Case, runs: dict[str, list[Run]]) -> Result:
    """The gateway's runs against their neighbors."""
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
        round(1e6 * statistics.median(g.cpu_s / g.num_messages for _, g in pairs), 1),
        round(1e6 * statistics.median(d.triton_s / d.num_messages for d, _ in pairs), 1),
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
def started_gateway(
    triton: str,
    *options: str,
    checkout: Path | None = None,
    core: int | None = None,
    module: str = "trt_mtp",
) -> Iterator[tuple[dict[str, Any], int]]:
    """`trt-mtp gateway` in front of `triton`: what it says when it is ready, and its process id.

    Its code is that of `checkout`, or else ours; it may run on all cores that we may, or on `core`.
    `module` is run for the command.
    """
    command = [module, "gateway", "--triton", triton, "--port", "0", "--json", *options]
    with started(command, checkout, core) as (ready, pid):
        yield ready, pid


@contextmanager
def started(
    module: Sequence[str], folder: Path | None = None, core: int | None = None
) -> Iterator[tuple[dict[str, Any], int]]:
    """A module that runs until it is ended: the JSON that it prints first, and its process id."""
    ours = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})  # a child begins where its parent is
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
    finally:
        os.sched_setaffinity(0, ours)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextmanager
def gateway_process(
    triton: str, *options: str, core: int | None = None
) -> Iterator[tuple[str, int]]:
    """The same: its gRPC address and process id."""
    with started_gateway(triton, *options, core=core) as (ready, pid):
        yield ready["gateway"], pid


def lines(results: list[Result], costs: dict[str, float]) -> Iterator[str]:
    """The results for people."""
    yield (
        f"{'case':46} {'throughput, gateway/direct':>28} {'added TTFT p50':>15} {'p99':>9}"
        f" {'CPU-µs/request':>15} {'CPU-µs/token':>13} {'a message':>10} {'of Triton':>10}"
    )
    for result in results:
        ratio = (
            f"{result.throughput_ratio:.2f} ({result.throughput_ratio_low:.2f} to "
            f"{result.throughput_ratio_high:.2f})"
        )
        yield (
            f"{result.case:46} {ratio:>28} {result.added_ttft_p50_ms:12.2f} ms"
            f" {result.added_ttft_p99_ms:6.2f} ms {result.cpu_us_per_request:15.0f}"
            f" {result.cpu_us_per_token:13.0f} {result.cpu_us_per_message:10.0f}"
            f" {result.triton_us_per_message:10.0f}"
        )
    for name, value in costs.items():
        yield f"{name.replace('_', ' ')}: {value:.0f}"


def doubles(folder: Path, num_repetitions: int, core: int | None) -> list[Result]:
    """The cases in which nothing but the way of the messages takes time."""
    with (
        triton_of_doubles(folder) as triton,
        gateway_process(triton.grpc_url, core=core) as (address, pid),
    ):

        def target(name: str, where: str, case: Case) -> Target:
            outputs, num = ("text_output",), case.num_tokens
            message = script_request(MODELS[name], outputs=outputs, tokens=num, text=PROMPT)
            return Target(where, message.SerializeToString(), num)  # a message a token

        places = {"direct": triton.grpc_url, "gateway": address}
        return [
            run_case(
                case,
                {name: target(name, where, case) for name, where in places.items()},
                (pid, triton.pid),
                num_repetitions,
            )
            for case in CASES
        ]


def engine(folder: Path, num_repetitions: int, core: int | None) -> list[Result]:
    """64 streams on the CPU engine, all at one draft length."""
    folders = build(str(TINY_CHECKPOINT), "0,3", folder / "engines")
    with (
        serving(resolve_variants(folders), repository=folder / "repository") as triton,
        gateway_process(triton.grpc_url, core=core) as (address, pid),
    ):
        results = []
        for k in ENGINE_LENGTHS:
            hinted = replace(ENGINE_PROMPT, parameters={"draft_length": str(k)})
            plain = request_bytes(f"qwen_mtp_k{k}", ENGINE_PROMPT)
            targets = {
                "direct": Target(triton.grpc_url, plain, None),
                "gateway": Target(address, request_bytes("qwen_mtp", hinted), None),
            }
            case = Case(f"64 streams on the CPU engine, K = {k}", 64, NUM_TOKENS, 192, True)
            results.append(run_case(case, targets, (pid, triton.pid), num_repetitions))
        return results


def pin() -> tuple[int, int]:
    """Keep this process and what it starts on one core; that core, and the gateway's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("--pinned needs two cores, and this process may use one only")
    os.sched_setaffinity(0, {cores[0]})
    return cores[0], cores[1]


def main() -> None:
    """Run the cases and print what they gave."""
    options = arguments(
        "What the gateway costs beside direct Triton.",
        "two repetitions in place of seven",
        pinned="the gateway on one core, and client and Triton together on another",
    )
    num_repetitions = 2 if options.short else 7
    core, gateway_core = pin() if options.pinned else (None, None)
    with tempfile.TemporaryDirectory() as name:
        results = doubles(Path(name) / "doubles", num_repetitions, gateway_core)
        costs = pure_costs(results)
        results += engine(Path(name), num_repetitions, gateway_core)
    values = {"cases": [asdict(result) for result in results], "costs": costs}
    pinned = {"client_and_triton": core, "gateway": gateway_core} if options.pinned else None
    where = [f"gateway on core {gateway_core}, client and Triton on core {core}"] if pinned else []
    found = {"pinned": pinned, **values}
    print_report(options.json, found, [*where, *lines(results, costs)])


if __name__ == "__main__":
    main()
