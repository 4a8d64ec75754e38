"""Ports for servers that may take any, and what is read from them."""

import http.client
import socket
import threading
from pathlib import Path

import pytest

from tests.programs import join
from trt_mtp.errors import InputError
from trt_mtp.serve import ports
from trt_mtp.serve.processes import free_ports


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_any_port_is_none_that_connections_are_given(host: str) -> None:
    """A connection could take it while its server is started again."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    names = [f"server{number}" for number in range(500)]
    ports = free_ports(dict.fromkeys(names, 0), dict.fromkeys(names, host))
    assert len(set(ports.values())) == len(names)
    assert all(port < first for port in ports.values())


def test_a_wanted_port_is_taken_or_refused() -> None:
    """The error names the port and its option."""
    port = free_ports({"grpc": 0})["grpc"]
    assert free_ports({"grpc": port}) == {"grpc": port}
    refused = pytest.raises(InputError, match=f"port {port} can't be used .*--grpc-port")
    with socket.create_server(("127.0.0.1", port)), refused:
        free_ports({"grpc": port})


@pytest.mark.parametrize(("limit", "value"), [("MAX_BODY_BYTES", 1_000), ("BODY_S", 0.1)])
def test_an_endless_answer_has_an_end(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much, and however slowly, a server sends."""
    monkeypatch.setattr(ports, limit, value)
    is_over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not is_over.wait(0.001):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with pytest.raises(http.client.HTTPException, match="it sends more than"):
                ports.get(listener.getsockname()[1], "/metrics")
        finally:
            is_over.set()
            join(thread)
