"""A DNS server on 127.0.0.1 that has the same IPv4 addresses for every name (RFC 1035)."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.programs import join

HEADER_BYTES = 12
NO_ERROR = 0x8580  # flags: an authoritative answer
TYPE_A, CLASS_IN, TTL_S = 1, 1, 5
SAME_NAME = b"\xc0\x0c"  # a pointer to the question's name


class DnsServer(threading.Thread):
    """Answers until it is closed; `addresses` may change meanwhile."""

    def __init__(self, addresses: list[str]) -> None:
        """Take a free port."""
        super().__init__()
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def run(self) -> None:
        """Answer each question; an empty one is the end."""
        while True:
            message, sender = self._socket.recvfrom(512)
            if not message:
                return
            self._socket.sendto(answer(message, self.addresses), sender)

    def close(self) -> None:
        """End it."""
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        join(self)
        self._socket.close()


def answer(message: bytes, addresses: list[str]) -> bytes:
    """The response to a message with one question: A records, or none for other types."""
    end = message.index(b"\0", HEADER_BYTES) + 5  # the name, its type and class
    (kind,) = struct.unpack(">H", message[end - 4 : end - 2])
    found = addresses if kind == TYPE_A else []
    response = message[:2] + struct.pack(">HHHHH", NO_ERROR, 1, len(found), 0, 0)
    response += message[HEADER_BYTES:end]
    for address in found:
        record = struct.pack(">HHIH", TYPE_A, CLASS_IN, TTL_S, 4)
        response += SAME_NAME + record + socket.inet_aton(address)
    return response


@contextmanager
def dns_server(*addresses: str) -> Iterator[DnsServer]:
    """A DnsServer that is gone at the end."""
    server = DnsServer(list(addresses))
    server.start()
    try:
        yield server
    finally:
        server.close()
