"""Two Triton servers and a gateway in front of them, all real processes."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.answers import Expected, computed, scripted
from tests.chaos.clock import Clock
from tests.chaos.gateway import GatewayProcess
from tests.chaos.server import Server
from tests.gateway_fixtures import write_doubles
from tests.variants import build_engines
from trt_mtp.build.variant import EngineVariant, list_variants
from trt_mtp.serve.repository import render_repository

SERVERS = ("a", "b")
DRAFT_LENGTHS = (0, 3)


class World:
    """What faults happen to, and what clients talk to."""

    def __init__(
        self,
        servers: Sequence[Server],
        gateway: GatewayProcess,
        clock: Clock,
        requests: Iterator[Expected],
    ) -> None:
        self.servers = tuple(servers)
        self.gateway = gateway
        self.clock = clock
        self.requests = requests
        self.gateway_is_down = asyncio.Event()  # clients may see that


@asynccontextmanager
async def doubles(folder: Path, rng: random.Random) -> AsyncIterator[World]:
    """A world of doubles, which answer as the request says."""
    servers = []
    for name in SERVERS:
        repository, notes = folder / name / "repository", folder / name / "notes"
        notes.mkdir(parents=True)
        models = write_doubles(repository, notes, DRAFT_LENGTHS)
        servers.append(Server(name, repository, models, folder / name / "triton", notes))
    async with _running(folder, servers, scripted(rng)) as world:
        yield world


@asynccontextmanager
async def variants(folder: Path, rng: random.Random) -> AsyncIterator[World]:
    """A world of engine variants that compute their answers."""
    built = list_variants(await asyncio.to_thread(build_engines, folder, DRAFT_LENGTHS))
    requests = computed(rng, built[0].folder)
    next(requests)  # computes all
    servers = [_server_of(built, folder / name) for name in SERVERS]
    async with _running(folder, servers, requests) as world:
        yield world


def _server_of(built: Sequence[EngineVariant], folder: Path) -> Server:
    repository = folder / "repository"
    models = render_repository(built, repository)
    return Server(folder.name, repository, models, folder / "triton")


@asynccontextmanager
async def _running(
    folder: Path, servers: Sequence[Server], requests: Iterator[Expected]
) -> AsyncIterator[World]:
    clock = Clock(folder)
    try:
        await asyncio.gather(*(server.start() for server in servers))
        gateway = GatewayProcess([s.address for s in servers], folder / "gateway", clock)
        try:
            await gateway.start()
            yield World(servers, gateway, clock, requests)
        finally:
            await gateway.stop()
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
