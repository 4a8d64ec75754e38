"""An HTTP/2 client that keeps to the server's windows, and so can send long messages in part."""

import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.http2_client import (
    ACK,
    DATA,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME,
    RST_STREAM,
    SETTINGS,
    call,
    connected,
    frame,
    opening,
)

WINDOW_UPDATE, PING, FIRST_WINDOW = 8, 6, 65_535


class Flow:
    """One connection with calls, each of which sends `num_bytes` of a message and no more."""

    def __init__(self, connection: socket.socket) -> None:
        """Open the connection; the server's answers are thrown away."""
        self.ended = set[int]()  # streams that the server ended
        self._connection = connection
        self._initial = FIRST_WINDOW
        self._window = FIRST_WINDOW  # of the connection
        self._windows: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._raw = b""
        self._num_settings = 0
        connection.sendall(opening())

    def begin(self, stream: int, num_bytes: int, *more: tuple[str, str], method: str) -> None:
        """Begin a call, and a message one byte longer than what will be sent of it."""
        self._windows[stream], self._left[stream] = self._initial, num_bytes
        self._connection.sendall(call(stream, method, *more))
        self._send(stream, b"\0" + struct.pack(">I", num_bytes + 1))

    def send(self, patience_s: float) -> int:
        """Send what may be sent, until nothing may for so long; the bytes that are left."""
        while True:
            for stream, left in self._left.items():
                while (size := min(left, self._windows[stream], self._window, MAX_FRAME)) > 0:
                    self._send(stream, bytes(size))
                    left = self._left[stream] = left - size
            is_done = not any(self._left.values())
            if not self._receive(0.0 if is_done else patience_s):
                return sum(self._left.values())

    def _send(self, stream: int, data: bytes) -> None:
        self._connection.sendall(frame(DATA, 0, stream, data))
        self._windows[stream] -= len(data)
        self._window -= len(data)

    def _receive(self, patience_s: float) -> bool:
        if not select.select([self._connection], [], [], patience_s)[0]:
            return False
        data = self._connection.recv(1 << 16)
        self._raw += data
        while len(self._raw) >= 9 + (size := int.from_bytes(self._raw[:3])):
            kind, flags, stream = struct.unpack(">BBI", self._raw[3:9])
            self._take(kind, flags, stream, self._raw[9 : 9 + size])
            self._raw = self._raw[9 + size :]
        return bool(data)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload)
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[at : at + 6])
                if key == INITIAL_WINDOW_SIZE:
                    self._windows = {k: v + value - self._initial for k, v in self._windows.items()}
                    self._initial = value
            if self._num_settings:  # that of the first went out with the opening
                self._connection.sendall(frame(SETTINGS, ACK, 0, b""))
            self._num_settings += 1
        elif kind == PING and not flags & ACK:
            self._connection.sendall(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.ended.add(stream)
            self._left[stream] = 0


@contextmanager
def half_sent(
    address: str,
    num_calls: int,
    num_bytes: int,
    metadata: Sequence[tuple[str, str]] = (),
    method: str = "ModelStreamInfer",
    patience_s: float = 3.0,
) -> Iterator[Flow]:
    """So many calls on one connection, each with so much of a message that never ends.

    A server may close the connection.
    """
    with connected(address) as connection:
        flow = Flow(connection)
        with suppress(OSError):
            for number in range(num_calls):
                flow.begin(2 * number + 1, num_bytes, *metadata, method=method)
            flow.send(patience_s)
        yield flow
