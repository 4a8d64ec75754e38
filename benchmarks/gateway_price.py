"""What the gateway costs for a request and a token: this code beside older, or without checks.

`python -m benchmarks.gateway_price` switches them out of the same code (benchmarks/_unchecked.py);
`git worktree add ../before COMMIT; python -m benchmarks.gateway_price --before ../before` compares
with all of another checkout.

Two gateways with tokens stand in front of one Triton of doubles, and beside them a proxy that only
passes messages on (benchmarks/_passing.py), which is what gRPC for Python alone takes. The same
requests go to each in turns. What is compared is their processor time.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks._report import print_report
from benchmarks.gateway import PROMPT, started, started_gateway
from tests.fuzz.wire_seeds import TOKEN, write_tokens
from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.serve.kserve import SERVICE

METADATA = (("authorization", f"Bearer {TOKEN}"),)
MODELS = ("qwen_mtp", "qwen_mtp_k3")  # what is asked for, and the double that answers
NUM_AT_ONCE = 32
NUM_REPETITIONS = 7
NUM_REQUESTS = 1_500
NUM_TOKENS = 64  # of an answer where its tokens are what is measured
NUM_LONG_REQUESTS = 256

OPEN, ALONE, SINGLE = "an open stream", "a stream for it alone", "a single answer"
TOKEN = f"a token of {NUM_TOKENS}"
WAYS = (OPEN, ALONE, SINGLE, TOKEN)

Ask = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Price:
    """Medians of a way's repetitions; low and high are the extremes of the ratios."""

    way: str
    before_us: float  # processor time for a request, or for a token
    after_us: float
    passing_us: float | None  # of what only passes messages on; it has no single answers
    ratio: float  # after / before
    ratio_low: float
    ratio_high: float


def cpu_ns(pid: int) -> int:
    """Processor time of a process' threads so far: the kernel's sched-stats.rst, first field."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files)


def asking(channel: grpc.aio.Channel, way: str) -> Callable[[], Ask]:
    """For each worker, what sends a request and reads its answer."""
    stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
    single = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
    is_single, is_long = way == SINGLE, way == TOKEN
    num_messages = NUM_TOKENS if is_long else 1
    message = script_request(
        tokens=num_messages, text=PROMPT, outputs=("text_output",), streaming=not is_single
    )
    raw = message.SerializeToString()

    def worker() -> Ask:
        open_call: Any = None

        async def ask() -> None:
            nonlocal open_call
            if is_single:
                await single(raw, metadata=METADATA)
                return
            call = open_call or stream(metadata=METADATA)
            await call.write(raw)
            for _ in range(num_messages):
                assert await call.read() is not grpc.aio.EOF
            if way != ALONE:
                open_call = call
                return
            await call.done_writing()
            await call.read()

        return ask

    return worker


async def measure(address: str, pid: int, way: str, share: float = 1.0) -> float:
    """Microseconds of the process' processor time for a request, or a token."""
    num = round(share * (NUM_LONG_REQUESTS if way == TOKEN else NUM_REQUESTS))
    left = num
    async with grpc.aio.insecure_channel(address) as channel:
        make = asking(channel, way)

        async def work() -> None:
            nonlocal left
            ask = make()
            while left > 0:
                left -= 1
                await ask()

        before = cpu_ns(pid)
        await asyncio.gather(*(work() for _ in range(NUM_AT_ONCE)))
        return (cpu_ns(pid) - before) / num / (NUM_TOKENS if way == TOKEN else 1) / 1e3


async def compared(way: str, gateways: dict[str, tuple[str, int]], share: float) -> Price:
    """All in turns; a first run of each doesn't count."""
    names = [name for name in gateways if name != "passing" or way != SINGLE]
    costs: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(NUM_REPETITIONS + 1):
        for name in names if repetition % 2 else reversed(names):
            cost = await measure(*gateways[name], way, share)
            if repetition:
                costs[name].append(cost)
    before, after = costs["before"], costs["after"]
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    return Price(
        way,
        round(statistics.median(before), 1),
        round(statistics.median(after), 1),
        round(statistics.median(costs["passing"]), 1) if "passing" in costs else None,
        *(round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))),
    )


async def compare(gateways: dict[str, tuple[str, int]], share: float) -> list[Price]:
    """All ways, one after the other, with this share of the requests."""
    return [await compared(way, gateways, share) for way in WAYS]


def lines(prices: list[Price]) -> Iterator[str]:
    """The prices for people."""
    head = f"{'before':>10} {'after':>10} {'passing':>10}"
    yield f"{'a request of 1 token on':26} {head}  after/before"
    for price in prices:
        ratio = f"{price.ratio:.3f} ({price.ratio_low:.3f} to {price.ratio_high:.3f})"
        passing = f"{price.passing_us:7.0f} us" if price.passing_us else f"{'-':>10}"
        yield (
            f"{price.way:26} {price.before_us:7.0f} us {price.after_us:7.0f} us {passing}  {ratio}"
        )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="a third of the requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, triton_of_doubles(Path(name) / "triton") as triton:
        arguments = ("--tokens", str(write_tokens(Path(name) / "tokens.json")))
        module = "trt_mtp" if options.before else "benchmarks._unchecked"
        with (
            started_gateway(
                triton.grpc_url, *arguments, checkout=options.before, module=module
            ) as before,
            started_gateway(triton.grpc_url, *arguments) as after,
            started(["benchmarks._passing", triton.grpc_url, *MODELS]) as passing,
        ):
            places = {"before": before, "after": after, "passing": passing}
            gateways = {key: (ready["gateway"], pid) for key, (ready, pid) in places.items()}
            prices = asyncio.run(compare(gateways, 1 / 3 if options.short else 1.0))
    print_report(options.json, {"ways": [asdict(price) for price in prices]}, lines(prices))


if __name__ == "__main__":
    main()
