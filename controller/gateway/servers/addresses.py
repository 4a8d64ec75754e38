"""HOST:PORT in IPv4 and IPv6, sockets for them, and what a DNS name stands for."""

import asyncio
import socket
from collections.abc import Sequence

from trt_mtp.serve.hosts import host_and_port


def stream_socket(host: str) -> socket.socket:
    """A TCP socket that may be bound to `host`."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return found


async def resolve(name: str, port: int) -> Sequence[str]:
    """HOST:PORT for each address of a DNS name; raises OSError when it has none.

    The IPv6 ones where there are no others: a server may have one of each kind, and is one server.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    version_4 = [entry for entry in found if entry[0] == socket.AF_INET]
    return sorted({host_and_port(str(entry[4][0]), port) for entry in version_4 or found})
