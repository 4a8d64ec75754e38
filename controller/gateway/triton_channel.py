"""A gRPC channel to one Triton server, over TLS where that is asked for."""

import asyncio
from typing import Any

import grpc

from trt_mtp.controller.gateway.kserve import SERVICE
from trt_mtp.controller.gateway.tls import WatchedTls, channel_credentials
from trt_mtp.serve.tls_files import TlsFiles

OLD_CHANNEL_S = 600.0  # for the calls that were begun before certificates changed
OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # what a variant answers is not ours to limit
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class TritonChannel:
    """Calls to a server, bytes in and out. Make it inside the event loop that uses it."""

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        """Raises InputError when the TLS files can't be used."""
        self._target = target
        self._tls = WatchedTls(tls) if tls else None
        self._closing: set[asyncio.Task[None]] = set()
        self._connect()

    def _connect(self) -> None:
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=OPTIONS)
        else:
            credentials = channel_credentials(self._tls.files)
            self._channel = grpc.aio.secure_channel(self._target, credentials, options=OPTIONS)
        prefix = f"/{SERVICE.full_name}/"
        self.unary: dict[str, Any] = {
            method.name: self._channel.unary_unary(prefix + method.name)
            for method in SERVICE.methods
        }
        self.stream: Any = self._channel.stream_stream(prefix + "ModelStreamInfer")

    def renew(self) -> bool:
        """Connect again if the TLS files changed; calls in flight finish on the old connection."""
        if self._tls is None or not self._tls.has_changed():
            return False
        closing = asyncio.create_task(self._channel.close(OLD_CHANNEL_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._connect()
        return True

    async def close(self) -> None:
        """Close; calls in flight end."""
        for closing in self._closing:
            closing.cancel()
        await self._channel.close()
