"""The faults: each breaks one thing, waits, and mends it."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.chaos.load import Load
from tests.chaos.server import Server
from tests.chaos.world import World

DOWN_S = (0.1, 1.5)  # how long what died stays dead
HANG_S = (0.2, 3.0)  # mostly longer than the gateway waits for a token, see STALL_MIN_S
RECONNECT_S = 3.0  # after the gateway is back, for clients that wait before they connect again
MAX_JUMP_S = 7 * 24 * 3600
PUBLIC_MODEL = "qwen_mtp_k"
BROKEN_AT_LOAD = "raise RuntimeError('this version does not load')\n"
BROKEN_AT_WORK = """
class TritonPythonModel:
    def execute(self, requests):
        raise RuntimeError("this version does not work")
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault happens: of the two servers the one that may be hurt, and chance."""

    world: World
    load: Load
    victim: Server
    rng: random.Random

    async def wait(self, range_s: tuple[float, float]) -> None:
        """Some time within `range_s`."""
        await asyncio.sleep(self.rng.uniform(*range_s))

    def stub(self) -> int:
        """The process of one of the victim's models."""
        return self.rng.choice(self.victim.triton.stub_pids)

    def worker(self) -> int:
        """The process of one of the gateway's workers."""
        return self.rng.choice(self.world.gateway.workers())

    def variant(self) -> str:
        """One of the victim's variants of the public model."""
        return self.rng.choice([m for m in self.victim.models if m.startswith(PUBLIC_MODEL)])


Fault = Callable[[Scene], Awaitable[None]]


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def gateway_down(world: World) -> AsyncIterator[None]:
    """Clients may lose their connections until a while after the end."""
    world.gateway_is_down.set()
    try:
        yield
        await asyncio.sleep(RECONNECT_S)
    finally:
        world.gateway_is_down.clear()


async def kill_stub(scene: Scene) -> None:
    """kill -9 of a model's process; Triton goes on without it until it is started again."""
    await scene.victim.die(scene.stub(), scene.rng.uniform(*DOWN_S))


async def kill_server(scene: Scene) -> None:
    """kill -9 of a Triton server, started again after a while."""
    await scene.victim.die(scene.victim.pid, scene.rng.uniform(*DOWN_S))


async def hang_stub(scene: Scene) -> None:
    """SIGSTOP of a model's process, which Triton 2.51 doesn't always survive."""
    async with stopped(scene.stub()):
        await scene.wait(HANG_S)


async def hang_server(scene: Scene) -> None:
    """SIGSTOP of a Triton server."""
    async with stopped(scene.victim.pid):
        await scene.wait(HANG_S)


async def abort_without_dying(scene: Scene) -> None:
    """A Triton whose signal handler hangs: it lives, takes connections and answers nothing."""
    await scene.victim.abort()


async def load_that_never_ends(scene: Scene) -> None:
    """kill -9 of a Triton server, one of whose models doesn't finish loading after it."""
    await scene.victim.load_for_ever(scene.variant())


async def reset_connections(scene: Scene) -> None:
    """RST on every connection between the gateway and a server."""
    scene.victim.relay.reset()


async def black_hole(scene: Scene) -> None:
    """Nothing gets through between the gateway and a server; then the connections go on."""
    scene.victim.relay.hold()
    await scene.wait(HANG_S)
    scene.victim.relay.release()


async def black_hole_and_reset(scene: Scene) -> None:
    """Nothing gets through, and in the end the connections are reset."""
    scene.victim.relay.hold()
    await scene.wait(HANG_S)
    scene.victim.relay.reset()
    scene.victim.relay.release()


async def lose_packets(scene: Scene) -> None:
    """The network device towards a server is down, and up again; TCP notices only the silence."""
    assert scene.victim.wire is not None
    scene.victim.wire.cut()
    await scene.wait(HANG_S)
    scene.victim.wire.mend()


async def version_that_does_not_load(scene: Scene) -> None:
    """Loading a version whose code can't be imported."""
    model = scene.variant()
    await scene.victim.add_version(model, BROKEN_AT_LOAD)
    await scene.victim.remove_version(model)


async def version_that_does_not_work(scene: Scene) -> None:
    """Loading a version that fails at every request; then it is taken away."""
    model = scene.variant()
    await scene.victim.add_version(model, BROKEN_AT_WORK)
    await scene.wait(DOWN_S)
    await scene.victim.remove_version(model)


async def kill_worker(scene: Scene) -> None:
    """kill -9 of a worker of the gateway, which starts another."""
    async with gateway_down(scene.world):
        await scene.world.gateway.kill_worker(scene.worker())


async def kill_gateway(scene: Scene) -> None:
    """kill -9 of the gateway and all its workers, started again at once."""
    async with gateway_down(scene.world):
        await scene.world.gateway.kill()


async def replace_gateway(scene: Scene) -> None:
    """Another gateway on the same port, and SIGTERM for the one before."""
    await scene.world.gateway.replace()


async def hang_worker(scene: Scene) -> None:
    """SIGSTOP of a worker of the gateway."""
    async with stopped(scene.worker()):
        await scene.wait(HANG_S)


async def full_disk(scene: Scene) -> None:
    """No byte more for the decision logs and all other files of the gateway."""
    gateway = scene.world.gateway
    sizes = [log.stat().st_size for log in gateway.decision_logs()]
    gateway.limit_files(max(sizes, default=0) + scene.rng.randrange(200))
    await scene.wait(DOWN_S)
    gateway.limit_files(-1)


async def clock_jump(scene: Scene) -> None:
    """The gateway's wall clock is set forward or back by up to a week, and right again."""
    scene.world.clock.jump(scene.rng.randint(-MAX_JUMP_S, MAX_JUMP_S))
    await scene.wait(DOWN_S)
    scene.world.clock.jump(0)


async def slow_client(scene: Scene) -> None:
    """A client that takes its time between tokens."""
    await scene.load.one(pause_s=scene.rng.uniform(0.02, 0.1))


async def vanishing_client(scene: Scene) -> None:
    """A client that leaves in the middle of its answer."""
    await scene.load.one(leave_after=scene.rng.randint(1, 5))


# How often each one is drawn, in the share of its kind. At most one of SERVER_FAULTS is going on,
# so that the variants of the other server live; the others happen beside it.
SERVER_FAULTS: dict[Fault, int] = {
    kill_stub: 4,
    kill_server: 4,
    hang_stub: 4,
    hang_server: 4,
    abort_without_dying: 4,
    load_that_never_ends: 1,
    reset_connections: 12,
    black_hole: 4,
    black_hole_and_reset: 4,
    lose_packets: 4,
    version_that_does_not_load: 2,
    version_that_does_not_work: 2,
}
# What ends connections on which answers are: for Triton that is a client that cancels, and 2.51
# aborts at times; and what it doesn't always survive itself.
CONNECTION_FAULTS = frozenset(
    {
        *(hang_stub, kill_stub, hang_server),
        *(reset_connections, black_hole_and_reset, kill_worker, kill_gateway),
    }
)
OTHER_FAULTS: dict[Fault, int] = {
    kill_worker: 2,
    kill_gateway: 1,
    replace_gateway: 1,
    hang_worker: 3,
    full_disk: 10,
    clock_jump: 6,
    slow_client: 10,
    vanishing_client: 25,
}
