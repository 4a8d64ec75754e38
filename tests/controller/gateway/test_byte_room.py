"""Room for bytes that wait: never more than its limit, and everybody gets a turn."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.gateway.byte_room import ByteRoom

LIMIT = 10


@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 5), st.booleans()), max_size=15),
)
def test_whatever_comes_and_leaves_the_limit_holds(
    messages: list[tuple[int, int, bool]],
) -> None:
    """Each message is held some turns; those that leave before or after their turn hold nothing."""

    async def scenario() -> None:
        room, order = ByteRoom(LIMIT), list[int]()

        async def hold(number: int, size: int, turns: int) -> None:
            await room.take(size)
            order.append(number)
            assert room.num_bytes <= max(LIMIT, size)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                room.give_back(size)

        tasks = [
            asyncio.create_task(hold(number, size, turns))
            for number, (size, turns, _) in enumerate(messages)
        ]
        await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, messages, strict=True):
            if leaves:
                task.cancel()
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        stayed = {number for number, (_, _, leaves) in enumerate(messages) if not leaves}
        assert order == sorted(order)
        assert stayed <= set(order)

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, 30)), max_size=15))
def test_what_turns_out_larger_counts_at_once(holds: list[tuple[int, int]]) -> None:
    """Everybody gets a turn, and at the end nothing is held."""

    async def scenario() -> None:
        room = ByteRoom(LIMIT)

        async def hold(expected: int, size: int) -> None:
            async with room.hold(expected) as held:
                assert room.num_bytes >= expected
                held.resize(size)
                await asyncio.sleep(0)
                assert room.num_bytes >= size
            with room.hold_now(size):
                await asyncio.sleep(0)

        async with asyncio.timeout(10):
            await asyncio.gather(*(hold(*sizes) for sizes in holds))
        assert room.num_bytes == room.num_waiting_bytes == 0

    asyncio.run(scenario())


def test_what_grows_counts_as_it_grows() -> None:
    """An answer that is put together here, message by message."""
    room = ByteRoom(LIMIT)
    with room.hold_now(0) as hold:
        for size in (1, 10, LIMIT):
            hold.grow(size)
        assert room.num_bytes == 11 + LIMIT
    assert room.num_bytes == 0


def test_who_leaves_holds_nobody_up() -> None:
    """A small message behind a large one whose client leaves has its room then."""

    async def scenario() -> None:
        room = ByteRoom(LIMIT)
        await room.take(6)
        large = asyncio.create_task(room.take(5))
        small = asyncio.create_task(room.take(4))
        await asyncio.sleep(0)
        large.cancel()
        async with asyncio.timeout(10):
            await small
        assert room.num_bytes == LIMIT
        assert large.cancelled()

    asyncio.run(scenario())
