"""Connections to a Redis that read no more for an exchange than one may bring.

redis-py reads whatever length the server says, which a server that is not what it should be could
say to be gigabytes.
"""

import asyncio
from typing import Any

MAX_EXCHANGE_BYTES = 1 << 26  # from one sending to the next: 32 values of a MiB, and some
PIECE_COST = 64  # bytes that each piece of an answer counts at least, for the time it takes


class AnswerTooLongError(OSError):
    """The server sends too much."""


class BoundedReader:
    """A stream's reader, as far as redis-py uses it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._left = MAX_EXCHANGE_BYTES

    def begin(self) -> None:
        """Another exchange begins."""
        self._left = MAX_EXCHANGE_BYTES

    async def readexactly(self, size: int) -> bytes:
        """As the reader's; raises AnswerTooLongError before anything is read."""
        self._take(size)
        return await self._reader.readexactly(size)

    async def readline(self) -> bytes:
        """As the reader's, which has a limit of its own."""
        line = await self._reader.readline()
        self._take(len(line))
        return line

    async def read(self, size: int = -1) -> bytes:
        """As the reader's."""
        data = await self._reader.read(size)
        self._take(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def _take(self, size: int) -> None:
        self._left -= max(size, PIECE_COST)
        if self._left < 0:
            raise AnswerTooLongError(f"it sends more than {MAX_EXCHANGE_BYTES:,} bytes at once")


def connection_class(*, is_tls: bool) -> type:
    """redis-py's kind of connection, over TLS or in the clear, with such a reader."""
    from redis.asyncio import Connection, SSLConnection

    class Bounding:
        """What both kinds do about it."""

        _reader: Any

        async def _connect(self) -> None:
            await super()._connect()  # type: ignore[misc]
            self._reader = BoundedReader(self._reader)

        async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            """Send; what comes back until the next time is one exchange."""
            if isinstance(self._reader, BoundedReader):
                self._reader.begin()
            await super().send_packed_command(*arguments, **options)  # type: ignore[misc]

    kind = SSLConnection if is_tls else Connection
    return type("Bounded", (Bounding, kind), {})
