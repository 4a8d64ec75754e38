"""What many may ask for at once, and takes long to render: once for all of them, with rests."""

import asyncio
from collections.abc import Callable

REST = 4.0  # times as long as it took: for the requests of everybody else


class SharedRendering:
    """Whoever asks gets a rendering that was begun after that."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._next: asyncio.Task[bytes] | None = None  # not begun yet
        self._rests_until = 0.0

    async def get(self) -> bytes:
        """The next rendering, with all others who wait for it."""
        if self._next is None:
            self._next = asyncio.create_task(self._render_next())
        return await asyncio.shield(self._next)

    async def _render_next(self) -> bytes:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(self._rests_until - loop.time(), 0.0))
        self._next = None
        began = loop.time()
        rendered = self._render()
        ended = loop.time()
        self._rests_until = ended + REST * (ended - began)
        return rendered
