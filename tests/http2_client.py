"""An HTTP/2 client that does what gRPC's own ones don't: frames of its own making."""

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
SERVICE_PATH = "/inference.GRPCInferenceService/"
MAX_FRAME = 16_384
TIMEOUT_S = 60.0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(*settings: tuple[int, int]) -> bytes:
    """What a client sends first."""
    values = b"".join(struct.pack(">HI", *setting) for setting in settings)
    return PREFACE + frame(SETTINGS, 0, 0, values) + frame(SETTINGS, ACK, 0, b"")


def header_block(pairs: Sequence[tuple[str, str]]) -> bytes:
    """HPACK: literals without indexing, in plain text, of less than 127 bytes."""
    block = b""
    for pair in pairs:
        texts = (text.encode() for text in pair)
        block += b"\0" + b"".join(bytes([len(text)]) + text for text in texts)
    return block


def call(stream: int, method: str = "ModelStreamInfer", *more: tuple[str, str]) -> bytes:
    """The beginning of a call, with `more` metadata."""
    pairs = [
        *((":method", "POST"), (":scheme", "http"), (":path", SERVICE_PATH + method)),
        *((":authority", "a"), ("te", "trailers"), ("content-type", "application/grpc")),
        *more,
    ]
    return frame(HEADERS, END_HEADERS, stream, header_block(pairs))


def message(stream: int, raw: bytes, missing: int = 0) -> bytes:
    """A message of gRPC, of which `missing` bytes are never sent."""
    body = b"\0" + struct.pack(">I", len(raw) + missing) + raw
    parts = (body[at : at + MAX_FRAME] for at in range(0, len(body), MAX_FRAME))
    return b"".join(frame(DATA, 0, stream, part) for part in parts)


@contextlib.contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """A connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        yield connection


def ended_streams(connection: socket.socket) -> Iterator[int]:
    """Each stream that the server ends, until it closes the connection."""
    ended = set[int]()
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            size, (kind, flags, stream) = int.from_bytes(head[:3]), struct.unpack(">BBI", head[3:])
            file.read(size)
            is_end = kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM)
            if is_end and stream not in ended:
                ended.add(stream)
                yield stream


@contextlib.contextmanager
def stream_without_window(
    address: str,
    messages: Sequence[bytes],
    method: str = "ModelStreamInfer",
    metadata: Sequence[tuple[str, str]] = (),
) -> Iterator[socket.socket]:
    """A call with these messages, whose client lets the server send no data."""
    with connected(address) as connection:
        connection.sendall(opening((INITIAL_WINDOW_SIZE, 0)) + call(1, method, *metadata))
        for raw in messages:
            connection.sendall(message(1, raw))
        yield connection
