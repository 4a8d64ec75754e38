"""Faults one after the other while clients ask, and what became of their streams."""

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.faults import (
    CONNECTION_FAULTS,
    OTHER_FAULTS,
    SERVER_FAULTS,
    Fault,
    Scene,
    load_that_never_ends,
    lose_packets,
)
from tests.chaos.load import Load
from tests.chaos.tally import Tally
from tests.chaos.world import World, doubles, variants
from trt_mtp.controller.decision_log import read_log

SERVER_SHARE = 0.5  # of all faults
SETTLE_S = 10.0  # for answers whose clients left
GAP_S = 0.2  # between two of a lane, on average

MakeWorld = Callable[[Path, random.Random], AbstractAsyncContextManager[World]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """Some faults in a world of its own."""

    make_world: MakeWorld
    num_faults: int
    num_clients: int


def parts(num_faults: int, variants_share: float) -> list[Part]:
    """Most faults among doubles, which are cheap to start again, the rest among variants."""
    num_real = round(num_faults * variants_share)
    return [Part(doubles, num_faults - num_real, 10), Part(variants, num_real, 6)]


async def run(plan: list[Part], seed: int, on_progress: Progress) -> dict[str, Any]:
    """The report of all parts together."""
    tally, started_s = Tally(), time.monotonic()
    rng = random.Random(seed)
    missing: set[str] = set()
    crashes: list[tuple[str, list[str]]] = []  # of Triton: why, and the faults before
    for part in plan:
        if part.num_faults:
            folder = Path(tempfile.mkdtemp(prefix="trt-mtp-chaos-"))
            async with part.make_world(folder, rng) as world:
                await _run_part(world, part, tally, rng, on_progress)
                crashes += [
                    (f"{server.name}: {restart.reason}", tally.faults_before(restart.at))
                    for server in world.servers
                    for restart in server.restarts
                    if not restart.is_meant
                ]
                missing |= {fault.__name__ for fault in _impossible(world)}
            if tally.total["lost"]:
                on_progress(f"logs are in {folder}")
            else:
                shutil.rmtree(folder)
    return {
        "schema_version": 1,
        "seed": seed,
        "duration_s": round(time.monotonic() - started_s, 1),
        **tally.to_json(),
        "triton_crashes": len(crashes),  # that no fault meant
        "crashes": [f"{why} (after {', '.join(faults)})" for why, faults in crashes],
        "unexplained_crashes": [why for why, faults in crashes if not _explained(faults)],
        "not_available": sorted(missing),
    }


async def _run_part(
    world: World, part: Part, tally: Tally, rng: random.Random, on_progress: Progress
) -> None:
    load = Load(world, tally)
    clients = asyncio.create_task(load.run(part.num_clients))
    impossible = _impossible(world)
    num_server = round(part.num_faults * SERVER_SHARE)
    try:
        async with asyncio.TaskGroup() as lanes:
            for faults, count in (
                (SERVER_FAULTS, num_server),
                (OTHER_FAULTS, part.num_faults - num_server),
            ):
                possible = {f: weight for f, weight in faults.items() if f not in impossible}
                drawn = rng.choices(list(possible), list(possible.values()), k=count)
                lane = _lane(world, load, tally, drawn, random.Random(rng.random()), on_progress)
                lanes.create_task(lane)
    finally:
        load.finish()
        await clients
    tally.total["stuck"] += await _stuck(world)
    for log in world.gateway.decision_logs():
        for _ in read_log(log):  # raises where a line is damaged
            pass


def _explained(faults: list[str]) -> bool:
    """Did one of the faults end connections, or what else Triton 2.51 doesn't always survive?"""
    return any(fault.__name__ in faults for fault in CONNECTION_FAULTS)


async def _stuck(world: World) -> int:
    """Requests that still run when no client waits for one."""
    for server in world.servers:
        await server.wait_whole()  # it may have died late of the last fault
    until_s = time.monotonic() + SETTLE_S
    while (count := sum(server.num_in_flight() for server in world.servers)) and (
        time.monotonic() < until_s
    ):
        await asyncio.sleep(GAP_S)
    return count


def _impossible(world: World) -> set[Fault]:
    """Faults that this machine can't have."""
    server = world.servers[0]
    found: set[Fault] = set() if server.wire else {lose_packets}
    return found if server.notes else found | {load_that_never_ends}


async def _lane(
    world: World,
    load: Load,
    tally: Tally,
    faults: list[Fault],
    rng: random.Random,
    on_progress: Progress,
) -> None:
    for fault in faults:
        await asyncio.sleep(rng.uniform(0, 2 * GAP_S))
        victim = rng.choice(world.servers)
        where = f" of {victim.name} ({victim.address})" if fault in SERVER_FAULTS else ""
        on_progress(f"{tally.total['faults'] + 1}: {fault.__name__}{where}")
        scene = Scene(world, load, victim, rng)
        with tally.fault(fault.__name__):
            if fault in SERVER_FAULTS:
                await victim.wait_whole()  # Triton may have died late of the fault before
            with contextlib.suppress(ProcessLookupError):  # it died by itself just then
                await fault(scene)
            if fault in SERVER_FAULTS:
                await victim.wait_whole()
