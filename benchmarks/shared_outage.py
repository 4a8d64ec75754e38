"""Gateways that share a Redis, and the Redis away for a minute: what that costs requests.

`python -m benchmarks.shared_outage [--json] [--short]`. Target: no request fails for it, and a
tenant has its limit before, during and after.

Four gateways stand in front of one Triton of doubles. One tenant without limits asks each of them
all the time; another, with 20 requests a second, sends 40. The Redis is killed, and started again
empty on its port.
"""

import asyncio
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import aiohttp

from benchmarks._report import arguments, print_report
from benchmarks.gateway import started_gateway
from tests.gateway_fixtures import triton_of_doubles
from tests.redis_server import RedisServer, redis_server

NUM_GATEWAYS = 4
FREE, LIMITED = "free", "limited"
LIMIT_PER_S = 20
ASKED_PER_S = 40  # by the tenant with the limit, of all gateways together
PAUSE_S = 0.1  # of each client of the other one, between an answer and its next request
GENERATE = "/v2/models/qwen_mtp/generate"
SETTLE_S = 5.0  # until all gateways know each other


class Answer(NamedTuple):
    """How a request ended."""

    tenant: str
    phase: str
    status: int  # of HTTP; 0 if there was none
    wait_s: float


class Load:
    """Clients of both tenants at all gateways; `phase` is that in which a request begins."""

    def __init__(self, gateways: list[str], session: aiohttp.ClientSession) -> None:
        self.phase = "before"
        self.answers: list[Answer] = []
        self._gateways, self._session = gateways, session
        self._is_over = False
        self._asking: set[asyncio.Task[None]] = set()

    async def ask(self, gateway: str, tenant: str) -> None:
        """One request."""
        phase, began_at = self.phase, time.monotonic()
        body = {"text_input": json.dumps({"tokens": 3, "delay_s": 0.01})}
        headers = {"Authorization": f"Bearer {tenant}"}
        try:
            url = f"http://{gateway}{GENERATE}"
            async with self._session.post(url, json=body, headers=headers) as response:
                await response.read()
                status = response.status
        except aiohttp.ClientError:
            status = 0
        self.answers.append(Answer(tenant, phase, status, time.monotonic() - began_at))

    async def free(self, gateway: str) -> None:
        """One request after the other."""
        while not self._is_over:
            await self.ask(gateway, FREE)
            await asyncio.sleep(PAUSE_S)

    async def limited(self) -> None:
        """Requests at a rate, whether they are answered or not."""
        number = 0
        begun_at = time.monotonic()
        while not self._is_over:
            gateway = self._gateways[number % len(self._gateways)]
            task = asyncio.create_task(self.ask(gateway, LIMITED))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            number += 1
            await asyncio.sleep(begun_at + number / ASKED_PER_S - time.monotonic())

    async def run(self, redis: RedisServer, phases: dict[str, float]) -> None:
        """All phases; the Redis is gone in that called `away`."""
        clients = [asyncio.create_task(self.free(gateway)) for gateway in self._gateways * 2]
        clients.append(asyncio.create_task(self.limited()))
        for self.phase, seconds in phases.items():
            if self.phase == "away":
                await asyncio.to_thread(redis.kill)
            elif self.phase == "after":
                await asyncio.to_thread(redis.start)
            await asyncio.sleep(seconds)
        self._is_over = True
        await asyncio.gather(*clients, *self._asking)


@contextmanager
def fleet(folder: Path, redis: RedisServer) -> Iterator[list[str]]:
    """The HTTP addresses of the gateways."""
    tenants: list[dict[str, Any]] = [{"name": FREE}, {"name": LIMITED}]
    tenants[1]["requests_per_s"] = LIMIT_PER_S
    for tenant in tenants:
        tenant["token_sha256"] = [hashlib.sha256(str(tenant["name"]).encode()).hexdigest()]
    file = folder / "tenants.json"
    file.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    options = ("--http-port", "0", "--shared", redis.url, "--tokens", str(file))
    with ExitStack() as stack:
        triton = stack.enter_context(triton_of_doubles(folder / "triton"))
        yield [
            stack.enter_context(
                started_gateway(triton.grpc_url, *options, "--replica", f"gateway-{index}")
            )[0]["http"]
            for index in range(NUM_GATEWAYS)
        ]


async def measure(phases: dict[str, float]) -> list[Answer]:
    """The answers to all requests."""
    with (
        tempfile.TemporaryDirectory() as name,
        redis_server() as redis,
        fleet(Path(name), redis) as gateways,
    ):
        async with aiohttp.ClientSession() as session:
            load = Load(gateways, session)
            await asyncio.sleep(SETTLE_S)
            await load.run(redis, phases)
            return load.answers


def figures(answers: Sequence[Answer], phases: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each phase."""
    by_phase: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_phase[answer.phase].append(answer)
    return [_row(phase, by_phase[phase], seconds) for phase, seconds in phases.items()]


def _row(phase: str, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    free = [answer for answer in answers if answer.tenant == FREE]
    limited = [answer.status for answer in answers if answer.tenant == LIMITED]
    waits = quantiles([answer.wait_s * 1e3 for answer in free], n=100)
    return {
        "phase": phase,
        "seconds": seconds,
        "requests": len(answers),
        "failed": sum(answer.status not in (200, 429) for answer in answers)
        + sum(answer.status == 429 for answer in free),
        "p50_ms": round(waits[49], 1),
        "p99_ms": round(waits[98], 1),
        "limited_admitted_per_s": round(limited.count(200) / seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    asked = arguments("What a Redis that is away costs.", "away for ten seconds")
    phases = {"before": 20.0, "away": 10.0 if asked.short else 60.0, "after": 20.0}
    rows = figures(asyncio.run(measure(phases)), phases)
    print_report(
        asked.json,
        {"phases": rows},
        (
            f"{row['phase']:>6} ({row['seconds']:.0f} s): {row['requests']} requests, "
            f"{row['failed']} failed; p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms; of the "
            f"tenant with {LIMIT_PER_S} a second {row['limited_admitted_per_s']} a second"
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
