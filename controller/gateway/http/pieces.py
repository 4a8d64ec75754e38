"""What came over a connection, parsed in pieces where parsing all of it would take a while.

A body of chunks that have one byte each costs fifty times as much as another of the same length,
and anybody may send one: it is read before a token is asked for, and after it was refused.
"""

import asyncio
from collections import deque
from typing import Any

from aiohttp import web

MAX_LINES = 2_000  # a read with more is cut; a body in one chunk, or a request's head, has fewer
PIECE_BYTES = 2 * 1024  # some 350 of the shortest chunks
MAX_HOLDERS = 64  # connections of a port that hold pieces, of 256 KiB each


class Turns:
    """The connections of a port that have pieces to parse: one piece in a turn of the loop."""

    def __init__(self) -> None:
        self.holders: set[PiecewiseHandler] = set()  # of pieces; some wait for room
        self._waiting: deque[PiecewiseHandler] = deque()

    def join(self, connection: "PiecewiseHandler") -> None:
        """Have it parse a piece when those before it had theirs."""
        if connection not in self._waiting:
            self._waiting.append(connection)
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        connection = self._waiting[0]
        try:
            is_more = connection.parse_piece()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._next)
        if is_more:
            self.join(connection)


class PiecewiseHandler(web.RequestHandler):
    """A connection that lets others have their turn while it parses many small chunks.

    Nothing more is taken from its client meanwhile.
    """

    __slots__ = ("_turns", "_unparsed")

    def __init__(self, *arguments: Any, turns: Turns, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turns = turns
        self._unparsed = bytearray()

    def data_received(self, data: bytes) -> None:
        """Parse it, or its pieces one after the other; without data, what the parser has left."""
        if not data or (not self._unparsed and data.count(b"\r\n") <= MAX_LINES):
            self.parse(data)
        elif not self._unparsed and len(self._turns.holders) >= MAX_HOLDERS:
            self.force_close()
        else:
            self._unparsed += data
            self._turns.holders.add(self)
            self._pause_transport_reading()
            self._turns.join(self)

    def connection_lost(self, error: BaseException | None) -> None:
        """Nobody waits for what is left."""
        super().connection_lost(error)
        self._unparsed.clear()
        self._turns.holders.discard(self)

    def parse(self, data: bytes) -> None:
        """Parse one piece."""
        super().data_received(data)

    def parse_piece(self) -> bool:
        """Parse the next piece, if aiohttp has room for it; whether there is another to parse."""
        if self._unparsed and not self._is_held:
            piece = bytes(self._unparsed[:PIECE_BYTES])
            del self._unparsed[:PIECE_BYTES]
            self.parse(piece)
            if not self._unparsed:
                self._turns.holders.discard(self)
                if not self._is_held:
                    self._resume_transport_reading()
        return bool(self._unparsed) and not self._is_held

    @property
    def _is_held(self) -> bool:
        """Whether aiohttp's buffers are full."""
        return self._reading_paused or self._buffer_paused

    def _resume_transport_reading(self) -> None:
        """Called by aiohttp when its buffers have room: first comes what is here already."""
        if self._unparsed:
            self._turns.join(self)
        else:
            super()._resume_transport_reading()
