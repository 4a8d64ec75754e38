"""Clients that ask without pause, each answer held against the one that is expected."""

import asyncio

from tests.chaos.client import End, ask
from tests.chaos.tally import Tally
from tests.chaos.world import World

PAUSE_S = 0.2  # after a stream that didn't succeed, as clients do who try again


class Load:
    """Streams through the gateway of a world, all of them counted."""

    def __init__(self, world: World, tally: Tally) -> None:
        self._world = world
        self._tally = tally
        self._is_over = False

    async def one(self, *, pause_s: float = 0.0, leave_after: int | None = None) -> None:
        """One answer; see `client.ask`."""
        stream = self._tally.started()
        world = self._world
        end, answer = await ask(
            world.gateway.address,
            next(world.requests),
            world.gateway_is_down,
            pause_s=pause_s,
            leave_after=leave_after,
        )
        self._tally.ended(stream, end, answer)
        if end in (End.REFUSED, End.LOST):
            await asyncio.sleep(PAUSE_S)

    async def run(self, num_clients: int) -> None:
        """Until `finish`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(num_clients):
                group.create_task(self._client())

    def finish(self) -> None:
        """Let every client finish the answer that it reads."""
        self._is_over = True

    async def _client(self) -> None:
        while not self._is_over:
            await self.one()
