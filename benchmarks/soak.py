"""What a gateway holds and what it keeps: many streams at once, and very many requests.

`python -m benchmarks.soak [--json] [--short]`

A real Triton hosts doubles of variants; the gateway runs as its own process. Streams that are held
bring one token every few seconds, and half of their clients don't read what comes. Memory is the
gateway process's resident set, from proc(5) /proc/PID/status.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks._report import arguments, print_report
from benchmarks.gateway import cpu_s, gateway_process
from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.serve.kserve import SERVICE

STREAMS_PER_CONNECTION = 100
NUM_WORKERS = 32
WARM_UP_SHARE = 0.1  # of the requests, before memory is first looked at
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked for."""

    num_streams: int
    num_tokens: int  # of each held stream
    delay_s: float  # between two of them
    num_requests: int


FULL = Size(2_000, 10, 4.0, 100_000)
SHORT = Size(200, 5, 0.5, 2_000)


@dataclass(frozen=True, slots=True)
class Held:
    """Streams held at once."""

    num_streams: int
    num_complete: int  # all tokens in order, those read late among them
    rss_before_mib: float
    rss_peak_mib: float
    rss_kib_per_stream: float
    cpu_share: float  # of one core, while they were held


@dataclass(frozen=True, slots=True)
class Repeated:
    """Requests one after the other."""

    num_requests: int
    requests_per_s: float
    rss_after_warm_up_mib: float
    rss_after_mib: float
    rss_growth: float  # 0.05 is 5%


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Any]:
    """A ModelStreamInfer method on a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")


async def hold(target: str, pid: int, size: Size) -> Held:
    """Open all streams, keep them for as long as their answers take, read them to the end."""
    request = script_request(tokens=size.num_tokens, delay_s=size.delay_s).SerializeToString()
    may_read, num_complete = asyncio.Event(), 0

    async def one(stream: Any, reads_late: bool) -> None:
        nonlocal num_complete
        call = stream()
        await call.write(request)
        await call.done_writing()
        if reads_late:
            await may_read.wait()
        messages = [message async for message in call]
        texts = [f"w{index}".encode() in m for index, m in enumerate(messages)]
        num_complete += texts == [True] * size.num_tokens

    async def connection(number: int) -> None:
        count = min(STREAMS_PER_CONNECTION, size.num_streams - number)
        async with connected(target) as stream:
            await asyncio.gather(*(one(stream, index % 2 == 0) for index in range(count)))

    before, cpu_before, start_s = rss_bytes(pid), cpu_s(pid), time.monotonic()
    held = [
        asyncio.create_task(connection(number))
        for number in range(0, size.num_streams, STREAMS_PER_CONNECTION)
    ]
    await asyncio.sleep(size.num_tokens * size.delay_s)
    peak, held_s = rss_bytes(pid), time.monotonic() - start_s
    share = (cpu_s(pid) - cpu_before) / held_s
    may_read.set()
    await asyncio.gather(*held)
    return Held(
        size.num_streams,
        num_complete,
        round(before / MIB, 1),
        round(peak / MIB, 1),
        round((peak - before) / 1024 / size.num_streams, 1),
        round(share, 2),
    )


async def repeat(target: str, pid: int, size: Size) -> Repeated:
    """One-token requests on a few open streams."""
    request = script_request(tokens=1).SerializeToString()
    warm_up, num_done = round(size.num_requests * WARM_UP_SHARE), 0
    first_rss = 0
    start_s = time.monotonic()
    async with connected(target) as stream:

        async def worker() -> None:
            nonlocal num_done, first_rss
            call = stream()
            while num_done < size.num_requests:
                num_done += 1
                if num_done == warm_up:
                    first_rss = rss_bytes(pid)
                await call.write(request)
                if b"w0" not in await call.read():
                    raise RuntimeError("an answer was not as expected")
            await call.done_writing()

        await asyncio.gather(*(worker() for _ in range(NUM_WORKERS)))
    last_rss, wall_s = rss_bytes(pid), time.monotonic() - start_s
    return Repeated(
        size.num_requests,
        round(size.num_requests / wall_s, 1),
        round(first_rss / MIB, 1),
        round(last_rss / MIB, 1),
        round(last_rss / first_rss - 1, 4),
    )


def lines(held: Held, repeated: Repeated) -> Iterator[str]:
    """The results for people."""
    yield (
        f"{held.num_streams:,} streams held, half of them unread: {held.num_complete:,} complete; "
        f"memory {held.rss_before_mib:.0f} -> {held.rss_peak_mib:.0f} MiB "
        f"({held.rss_kib_per_stream:.0f} KiB a stream), {held.cpu_share:.0%} of a core"
    )
    yield (
        f"{repeated.num_requests:,} requests, {repeated.requests_per_s:.0f}/s: memory "
        f"{repeated.rss_after_warm_up_mib:.1f} MiB after a tenth, {repeated.rss_after_mib:.1f} MiB "
        f"after all: {repeated.rss_growth:+.1%}"
    )


def main() -> None:
    """Hold, repeat, and print what came of it."""
    options = arguments(
        "What a gateway holds and what it keeps.", "a tenth of the streams, few requests"
    )
    size = SHORT if options.short else FULL
    with (
        tempfile.TemporaryDirectory() as folder,
        triton_of_doubles(Path(folder) / "triton", max_batch_size=size.num_streams) as triton,
        gateway_process(triton.grpc_url, "--max-caller-streams", str(size.num_streams)) as (
            address,
            pid,
        ),
    ):
        repeated = asyncio.run(repeat(address, pid, size))
        held = asyncio.run(hold(address, pid, size))
    results = {"held": asdict(held), "repeated": asdict(repeated)}
    print_report(options.json, results, lines(held, repeated))


if __name__ == "__main__":
    main()
