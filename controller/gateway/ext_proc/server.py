"""The port that Envoy asks for the picker, with its health beside it."""

import ipaddress
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Authenticator
from trt_mtp.controller.gateway.access.stream_counts import StreamCounts
from trt_mtp.controller.gateway.ext_proc.picker import Picker
from trt_mtp.controller.gateway.health_service import HealthService
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.router import Router
from trt_mtp.controller.gateway.servers.sources import DNS, KUBERNETES
from trt_mtp.errors import InputError
from trt_mtp.serve.hosts import host_and_port

MAX_WATCHES = 64  # of its health
KEEPALIVE_MS = 15_000  # finds an Envoy whose machine is gone, and frees its places


class PickerServer:
    """Make, start and stop it inside one event loop."""

    def __init__(
        self, proxy: Proxy, router: Router, authenticator: Authenticator, max_message_bytes: int
    ) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", -1),  # Envoy's own limit holds
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        counts = StreamCounts(MAX_WATCHES), StreamCounts(MAX_WATCHES, "calls")
        self._health = HealthService(proxy.pool, _unknown, *counts)
        picker = Picker(proxy, router, authenticator, max_message_bytes)
        self._server.add_generic_rpc_handlers((picker.handler(), self._health.handler()))

    async def start(self, host: str, port: int) -> int:
        """Serve at a port, or a free one for 0; the port. Raises InputError if it is in use."""
        wanted = host_and_port(host, port)
        try:
            found = int(self._server.add_insecure_port(wanted))
        except RuntimeError:
            raise InputError(
                f"can't listen on {wanted}: the port is in use or the address is not this "
                f"machine's; choose others with --host and --ext-proc-port (0 takes a free port)"
            ) from None
        await self._server.start()
        return found

    async def stop(self, grace_s: float) -> None:
        """Pick no more, and have the answers in flight finished within the grace period."""
        self._health.drain()
        await self._server.stop(grace_s)

    def look(self) -> None:
        """Tell who watches its health of a change; call it now and then."""
        self._health.look()


def check_addresses(triton: str) -> None:
    """Raise InputError where servers are named, which Envoy can't send to by a header."""
    for target in triton.split(","):
        host = target.strip().rpartition(":")[0].strip("[]")
        if target.strip().startswith((DNS, KUBERNETES)):
            continue
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise InputError(
                f"--triton {target.strip()} is a name: Envoy needs an address with "
                f"--ext-proc-port; write the address, or dns:{target.strip()}"
            ) from None


def _unknown(context: Any) -> None:
    """Whoever asks for its health here is told the gateway's."""
