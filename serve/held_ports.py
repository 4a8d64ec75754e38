"""The ports of a server that is started again: they stay its own while it is away."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from trt_mtp.errors import InputError
from trt_mtp.serve.ports import HOST, Ports
from trt_mtp.serve.processes import free_ports


class HeldPorts:
    """Ports for requests are held: another user who took one would get what is sent there.

    The sockets are bound and don't listen, so that no connection comes to them. A program of ours
    that sets SO_REUSEPORT can listen beside them, as Triton does but for its metrics.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def choose(self, wanted: Ports, grpc_host: str) -> Ports:
        """The ports, free ones for 0, in place of any before; raises InputError if one is taken."""
        self.release()
        names = {name: getattr(wanted, name) for name in Ports.__slots__}
        numbers = {name: port for name, port in names.items() if port is not None}
        ports = Ports(**free_ports(numbers, {"grpc": grpc_host}))
        self._hold(grpc_host, ports.grpc)
        if ports.http is not None:
            self._hold(HOST, ports.http)
        return ports

    def release(self) -> None:
        """Leave them to whoever comes."""
        while self._sockets:
            self._sockets.pop().close()

    def _hold(self, host: str, port: int) -> None:
        """Hold a port that is free; where it isn't any more, the server says so."""
        held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._sockets.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind((host, port))
        except OSError:  # perhaps for connections of a server that was there before
            with suppress(OSError):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind((host, port))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # with it, others can listen


def with_free_metrics(ports: Ports, say: Callable[[str], None]) -> Ports:
    """The same ports, with another one for metrics, which is said, if that one is taken."""
    try:
        free_ports({"metrics": ports.metrics})
    except InputError:
        moved = replace(ports, **free_ports({"metrics": 0}))
        say(f"another program has port {ports.metrics}; the metrics are at {HOST}:{moved.metrics}")
        return moved
    return ports
