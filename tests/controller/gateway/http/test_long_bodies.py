"""Long bodies are read one after the other, by turns of their callers."""

import asyncio
import threading

from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.http.long_bodies import LongBodies
from trt_mtp.serve.json_weight import MAX_SHORT

LONG = b" " * (MAX_SHORT + 1)


def test_one_at_a_time_by_turns() -> None:
    """Who has many waits for itself, and not everybody else for all of them."""
    order, at_once = list[str](), threading.Semaphore(1)

    async def scenario() -> None:
        bodies, rooms = LongBodies(), {"many": ByteRoom(1), "one": ByteRoom(1)}

        def read(name: str) -> None:
            assert at_once.acquire(blocking=False)
            order.append(name)
            at_once.release()

        async def ask(name: str) -> None:
            await bodies.read(LONG, rooms[name], lambda _: read(name))

        await asyncio.gather(*[ask("many") for _ in range(10)], ask("one"))
        assert order.index("one") < 2
        assert len(order) == 11
        assert await bodies.read(b"short", rooms["one"], len) == 5

    asyncio.run(asyncio.wait_for(scenario(), 60))
