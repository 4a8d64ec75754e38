"""A thousand servers behind a hundred gateways, each of which knows little: what that costs.

`python -m benchmarks.fleet_load [--json] [--short]`. In simulated time, with the gateways' own
choice (controller/gateway/servers/candidates.py, then the policy), the servers of `trt-mtp
simulate`, and the same seeded requests in each row. A gateway knows what it sent, and hears from
the servers that answer it how many requests these have; of the others it knows nothing, or what has
faded since.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from benchmarks._report import arguments, print_report
from trt_mtp.controller.filters import NoVariantError
from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.candidates import Index, Preference
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.simulate import fleet as simulated
from trt_mtp.controller.simulate.arrivals import poisson
from trt_mtp.controller.simulate.workload import (
    MIXES,
    SimulatedRequest,
    Workload,
    published_cost,
)

LENGTHS = {0: 1.0, 1: 2.0, 3: 2.0}  # shares of the servers
MAX_BATCH_SIZE = 8
IN_FLIGHT = 5.0  # requests per server, about: five of eight slots
WARM_UP = 0.3  # of the requests, before the fleet is as busy as it gets
SEED = 7


class Row(NamedTuple):
    """Who chooses, and what they know."""

    name: str
    num_gateways: int  # of a hundred; fewer in a short run
    subset_size: int | None = None
    sees_all: bool = False  # the least loaded of all servers, as they are at this moment
    is_told: bool = True  # responses say how busy a server is


ROWS = (
    Row("one that sees everything", 1, sees_all=True),
    Row("one gateway, a few servers at random", 1),
    Row("100 gateways, no subset", 100),
    Row("100 gateways, a subset of 50", 100, 50),
    Row("100 gateways, a subset of 20", 100, 20),
    Row("100 gateways that count only their own", 100, is_told=False),
)


class Flight(NamedTuple):
    """Where a request went."""

    gateway: int
    server: int


@dataclass(slots=True)
class Seen:
    """What came of the requests of one row."""

    latencies: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    num_waited: int = 0  # at a server that was full

    def note(self, flight: simulated.InFlight, ended_at: float) -> None:
        """A request is over."""
        took_s = ended_at - flight.arrived_at
        self.latencies.append(took_s)
        self.speeds.append(flight.request.num_tokens / took_s)
        self.num_waited += flight.started_at > flight.arrived_at

    def values(self) -> dict[str, float]:
        """For the report."""
        latencies, speeds = sorted(self.latencies), sorted(self.speeds)
        num = len(latencies)
        return {
            "latency_p50_s": round(latencies[num // 2], 3),
            "latency_p99_s": round(latencies[99 * num // 100], 3),
            "user_tokens_per_s": round(speeds[num // 2], 1),
            "waited": round(self.num_waited / num, 5),
        }


class World:
    """The servers, and the gateways before them."""

    def __init__(self, row: Row, num_servers: int, backends: Sequence[Backend]) -> None:
        self.row, cost = row, published_cost()
        self.fleet = simulated.Fleet(simulated.split(num_servers, LENGTHS), cost, MAX_BATCH_SIZE)
        self.policy = Policy(seed=SEED)
        self.views = [
            [
                _view(backend, server)
                for backend, server in zip(backends, self.fleet.replicas, strict=True)
            ]
            for _ in range(row.num_gateways)
        ]
        self.indices = [
            Index(view, Preference(f"gateway-{number}", "", row.subset_size))
            for number, view in enumerate(self.views)
        ]
        self.servers = {replica.backend.target: i for i, replica in enumerate(self.views[0])}
        self.users: list[list[int]] = [[] for _ in backends]  # the gateways of its requests
        self.flights: dict[int, Flight] = {}  # by the identity of what is in flight

    def place(self, gateway: int, request: SimulatedRequest, now: float) -> None:
        """A request comes to a gateway and is sent on."""
        server = self._chosen(gateway, request, now)
        flight = simulated.InFlight(request, now, 0, None)
        self.flights[id(flight)] = Flight(gateway, server)
        self.views[gateway][server].num_running += 1
        self.users[server].append(gateway)
        self.fleet.submit(self.fleet.replicas[server], flight, now)
        self._tell(server, now)

    def end(self, flight: simulated.InFlight, now: float) -> None:
        """A request is answered."""
        gateway, server = self.flights.pop(id(flight))
        self.views[gateway][server].num_running -= 1
        self._tell(server, now)  # its last response, too
        self.users[server].remove(gateway)

    def _chosen(self, gateway: int, request: SimulatedRequest, now: float) -> int:
        if self.row.sees_all:
            least = [self.fleet.least_loaded(k).index for k in self.fleet.draft_lengths]
            offered = [self.views[0][index] for index in least]
        else:
            offered = self.indices[gateway].candidates(now)
        states = [replica.state(True, now) for replica in offered]
        try:
            variant = self.policy.choose(request.features, states, now_s=now).variant
        except NoVariantError:  # all are full: it waits at one
            variant = min(states, key=lambda state: state.num_running).name
        return self.servers[variant.partition("@")[2]]

    def _tell(self, server: int, now: float) -> None:
        """Each step's tokens bring the server's load to the gateways that it answers."""
        if not self.row.is_told:
            return
        load = self.fleet.replicas[server].load
        for gateway in set(self.users[server]):
            self.views[gateway][server].note_load(load, now, 0)


def _view(backend: Backend, server: simulated.Replica) -> Replica:
    """A server as one gateway knows it."""
    name, length = f"k{server.max_draft_length}", server.max_draft_length
    found = Replica(
        backend, f"{name}@{backend.target}", name, f"qwen_mtp_{name}", length, MAX_BATCH_SIZE,
        1 << 20, "f0", {}, frozenset(), frozenset(),
    )  # fmt: skip
    found.health.poll(True, 0.0)
    return found


def rate_per_s(num_servers: int) -> float:
    """Requests per second with which about IN_FLIGHT are at each server."""
    workload = Workload(published_cost(), SEED)
    drawn = [workload.draw(MIXES["chat"]) for _ in range(2_000)]
    seconds = [workload.seconds(request, 1, int(IN_FLIGHT)) for request in drawn]
    return num_servers * IN_FLIGHT / (sum(seconds) / len(seconds))


def run(row: Row, num_servers: int, num: int, backends: Sequence[Backend]) -> dict[str, float]:
    """The latencies and speeds of a row; the same requests at the same times in each."""
    DRAWS.seed(SEED)
    rng, workload = random.Random(SEED), Workload(published_cost(), SEED)
    world, seen = World(row, num_servers, backends), Seen()
    arrivals = islice(poisson(rate_per_s(num_servers), rng), num)
    began_at = 0.0
    for number, arrival in enumerate(arrivals):
        if number == int(WARM_UP * num):
            began_at = arrival.at
        _end_until(world, seen, arrival.at, began_at)
        request = workload.draw(MIXES["chat"])
        world.place(rng.randrange(row.num_gateways), request, arrival.at)
    return seen.values()


def _end_until(world: World, seen: Seen, now: float, began_at: float) -> None:
    for ended_at, flight in world.fleet.finished_until(now):
        world.end(flight, ended_at)
        if began_at and flight.arrived_at >= began_at:
            seen.note(flight, ended_at)


async def measure(num_servers: int, share: float, num: int) -> dict[str, dict[str, float]]:
    """All rows, with `share` of their gateways."""
    backends = [Backend(f"10.0.{n // 250}.{n % 250}:8001", "qwen_mtp") for n in range(num_servers)]
    rows = {}
    for row in ROWS:
        few = row._replace(num_gateways=max(1, round(row.num_gateways * share)))
        rows[row.name] = run(few, num_servers, num, backends)
    await asyncio.gather(*(backend.close() for backend in backends))
    return rows


def main() -> None:
    """Every row on the same requests."""
    asked = arguments("What stale knowledge of load costs.", "a tenth of the servers and gateways")
    num_servers, share, num = (100, 0.1, 4_000) if asked.short else (1_000, 1.0, 40_000)
    began = time.process_time()
    rows = asyncio.run(measure(num_servers, share, num))
    best = rows[ROWS[0].name]
    rate, took_s = f"{rate_per_s(num_servers):,.0f} requests/s", time.process_time() - began
    print_report(
        asked.json,
        {"rows": rows, "num_servers": num_servers, "seed": SEED},
        [
            f"{num_servers:,} servers, {100 * share:.0f} gateways, {rate} "
            f"({num:,} of them, {took_s:.0f} s of processor time)",
            *(
                f"{name:<40} p50 {row['latency_p50_s']:.2f} s, p99 {row['latency_p99_s']:.2f} s "
                f"({row['latency_p99_s'] / best['latency_p99_s']:.2f}), "
                f"{row['user_tokens_per_s']:.0f} tokens/s "
                f"({row['user_tokens_per_s'] / best['user_tokens_per_s']:.3f}), "
                f"{row['waited']:.2%} waited at a full server"
                for name, row in rows.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
