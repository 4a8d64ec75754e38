"""What `--workers` is worth: one gateway process, and two that share a port, side by side.

`python -m benchmarks.workers [--json] [--short]`

Both stand in front of one Triton of doubles and are kept busy in turns, with as many connections
for each process. A process serves the reciprocal of its processor time per request; so if two
workers take no more of it per request than one process does, N workers on N cores serve N times as
much. The counters in shared memory are timed alone.
"""

import asyncio
import statistics
import tempfile
import timeit
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks._report import arguments, print_report
from benchmarks.gateway import PROMPT, started_gateway
from benchmarks.gateway_price import cpu_ns
from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat, scoreboard_memory
from trt_mtp.serve.kserve import SERVICE

NUM_CONNECTIONS = 16  # for each process; the kernel spreads them
NUM_TOKENS = 8
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


async def measure(address: str, pids: Sequence[int], num: int) -> tuple[float, Counter[int]]:
    """Microseconds of processor time of a request, and of each process' part of it."""
    message = script_request(tokens=NUM_TOKENS, text=PROMPT, outputs=("text_output",))
    raw = message.SerializeToString()

    async def client() -> None:
        async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
            call: Any = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")()
            for _ in range(num // NUM_CONNECTIONS):
                await call.write(raw)
                for _ in range(NUM_TOKENS):
                    assert await call.read() is not grpc.aio.EOF
            await call.done_writing()
            await call.read()

    num_connections = NUM_CONNECTIONS * len(pids)
    before = {pid: cpu_ns(pid) for pid in pids}
    await asyncio.gather(*(client() for _ in range(num_connections)))
    parts = Counter({pid: cpu_ns(pid) - before[pid] for pid in pids})
    return parts.total() / (num // NUM_CONNECTIONS * num_connections) / 1e3, parts


def shared_counters_us() -> float:
    """Microseconds of what a request does with the counters: six variants read, two changes."""
    with scoreboard_memory(2) as memory:
        board = Scoreboard(Seat(memory, 0, 2))
        counters = [board.counter("running", f"k{k}") for k in range(6)]

        def request() -> None:
            for counter in counters:
                counter.others  # noqa: B018 it is the reading that is timed
            counters[0].add(1)
            counters[0].add(-1)

        num = 20_000
        return min(timeit.repeat(request, number=num, repeat=5)) / num * 1e6


def compare(folder: Path, num: int, num_repetitions: int) -> dict[str, float]:
    """Both in turns; a first run of each doesn't count."""
    costs: dict[str, list[float]] = {"one": [], "two": []}
    shares = []
    with (
        triton_of_doubles(folder) as triton,
        started_gateway(triton.grpc_url) as (one, pid),
        started_gateway(triton.grpc_url, "--workers", "2") as (two, _),
    ):
        places = {"one": (one["gateway"], [pid]), "two": (two["gateway"], two["workers"])}
        for repetition in range(num_repetitions + 1):
            for name in list(places) if repetition % 2 else list(reversed(places)):
                cost, parts = asyncio.run(measure(*places[name], num))
                if repetition:
                    costs[name].append(cost)
                    if name == "two":
                        shares.append(max(parts.values()) / parts.total())
    ratios = [two / one for one, two in zip(costs["one"], costs["two"], strict=True)]
    return {
        "one_us": round(statistics.median(costs["one"]), 1),
        "two_us": round(statistics.median(costs["two"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "busier_worker": round(statistics.median(shares), 3),
        "counters_us": round(shared_counters_us(), 2),
    }


def main() -> None:
    """Compare and print."""
    asked = arguments("What workers are worth.", "three repetitions of fewer requests")
    num, num_repetitions = (640, 3) if asked.short else (1_600, 7)
    with tempfile.TemporaryDirectory() as name:
        found = compare(Path(name) / "triton", num, num_repetitions)
    print_report(
        asked.json,
        found,
        [
            f"processor time of a request of {NUM_TOKENS} tokens: one process "
            f"{found['one_us']:.0f} us, two workers {found['two_us']:.0f} us, "
            f"ratio {found['ratio']:.2f} ({found['ratio_low']:.2f} to {found['ratio_high']:.2f})",
            f"a core serves {1e6 / found['one_us']:.0f} requests/s in one process, two workers on "
            f"two cores {2e6 / found['two_us'] * 0.5 / found['busier_worker']:.0f}: the busier one "
            f"had {found['busier_worker']:.0%} of the work",
            f"counters in shared memory: {found['counters_us']:.1f} us of it",
        ],
    )


if __name__ == "__main__":
    main()
