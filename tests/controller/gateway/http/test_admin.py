"""The admin port, which other users of the machine reach: they stop nothing with it."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.gateway_fixtures import running_gateway, triton_of_doubles
from tests.http_client import ask
from trt_mtp.controller.gateway.http.admin import ACCESS
from trt_mtp.controller.gateway.http.peer_user import connected_user, may_steer
from trt_mtp.serve.triton import TritonServer

STRANGER = 65_533
DRAIN: dict[str, Any] = {"method": "POST", "path": "/drain", "headers": {"TRT-MTP-Admin": "yes"}}


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton of doubles."""
    with triton_of_doubles(tmp_path_factory.mktemp("doubles")) as triton:
        yield triton


def test_its_connections_are_few(doubles: TritonServer) -> None:
    """Those of clients may take all other files that a process may open."""
    with (
        running_gateway(doubles.grpc_url, http_port=0, admin_port=0) as thread,
        ExitStack() as stack,
    ):
        address = ("127.0.0.1", thread.gateway.admin_port)
        most = ACCESS.connections.max_connections
        held = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(most)]
        one_too_many = stack.enter_context(socket.create_connection(address, 60))
        with suppress(ConnectionResetError):
            assert one_too_many.recv(1) == b""  # closed
        assert ask(thread.gateway.http_address, "GET", "/v2/health/ready").status == 200
        for each in held:
            each.close()


def test_what_it_tells_is_rendered_once_for_all_who_ask(
    doubles: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 380 connections another user had requests of 40 ms take seven seconds."""
    num_asking, num_told = 20, 0
    with (
        running_gateway(doubles.grpc_url, http_port=0, admin_port=0) as thread,
        ExitStack() as stack,
    ):
        statistics = thread.gateway.statistics

        def counted() -> object:
            nonlocal num_told
            num_told += 1
            return statistics()

        monkeypatch.setattr(thread.gateway, "statistics", counted)
        address = ("127.0.0.1", thread.gateway.admin_port)
        sockets = [
            stack.enter_context(socket.create_connection(address, 60)) for _ in range(num_asking)
        ]
        for each in sockets:
            each.sendall(b"GET /statistics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for each in sockets:
            assert each.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert 0 < num_told < num_asking


def test_the_user_at_the_other_end_is_known() -> None:
    """As long as the connection is open: of one that was closed the kernel says root."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 60)
        served, peer = listener.accept()
        with served:
            assert connected_user(peer, served.getsockname()) == os.geteuid()
            client.close()
            assert connected_user(peer, served.getsockname()) is None
    assert may_steer(os.geteuid())
    assert may_steer(0)
    assert not may_steer(os.geteuid() + 1)
    assert not may_steer(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_drains_nothing(doubles: TritonServer) -> None:
    """It would end the gateway for all."""
    with running_gateway(doubles.grpc_url, http_port=0, admin_port=0) as thread:
        admin = f"127.0.0.1:{thread.gateway.admin_port}"
        libc = ctypes.CDLL(None)
        libc.setfsuid(STRANGER)  # of this thread: whose its sockets are
        try:
            refused = ask(admin, **DRAIN)
        finally:
            libc.setfsuid(0)
        assert refused.status == 403
        assert "draining is for the user that runs the gateway (0)" in refused.json()["error"]
        assert ask(thread.gateway.http_address, "GET", "/v2/health/ready").status == 200
        assert ask(admin, **DRAIN).json()["draining"]
