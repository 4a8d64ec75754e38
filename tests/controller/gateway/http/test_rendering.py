"""What many ask for at once is rendered once for all of them, after they asked."""

import asyncio

from trt_mtp.controller.gateway.http.rendering import SharedRendering


def test_who_asks_together_shares_a_rendering() -> None:
    """Or any caller could stop the event loop with as many connections as it has."""
    count = 0

    def render() -> bytes:
        nonlocal count
        count += 1
        return b"%d" % count

    async def scenario() -> None:
        rendering = SharedRendering(render)
        assert set(await asyncio.gather(*[rendering.get() for _ in range(100)])) == {b"1"}
        assert await rendering.get() == b"2"  # what came after the first one began
        left = asyncio.create_task(rendering.get())
        await asyncio.sleep(0)
        left.cancel()
        assert await rendering.get() == b"3"

    asyncio.run(scenario())
