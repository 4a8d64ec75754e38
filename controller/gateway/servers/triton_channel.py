"""A gRPC channel to one Triton server, over TLS where that is asked for."""

import asyncio
import time
from functools import partial
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.tls import WatchedTls, channel_credentials
from trt_mtp.serve.hosts import channel_options, normal_target
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.tls_files import TlsContents, TlsFiles

RETIRED_S = 600.0  # for what is in flight on a connection that takes nothing new
RETIRED_POLL_S = 0.2
MAX_ANSWER_BYTES = 1 << 28  # of one message; more than this would be a server that lies
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    # else gRPC guesses how much is on its way, and lets tens of MB come that nobody reads
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time that an attempt has: busy servers
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Connection:
    """One gRPC channel and the calls on it."""

    def __init__(self, target: str, tls: TlsContents | None) -> None:
        """Over TLS, with these contents of its files, where there are any."""
        target = normal_target(target)
        options = OPTIONS + channel_options(target)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            credentials = channel_credentials(tls)
            self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        prefix = f"/{SERVICE.full_name}/"
        self.unary: dict[str, Any] = {
            method.name: partial(self._begin, self._channel.unary_unary(prefix + method.name))
            for method in SERVICE.methods
        }
        stream = self._channel.stream_stream(prefix + "ModelStreamInfer")
        self.stream: Any = partial(self._begin, stream)
        self._calls: set[Any] = set()
        self._silent: set[Any] = set()

    def _begin(self, method: Any, *arguments: Any, **options: Any) -> Any:
        call = method(*arguments, **options)
        self._calls.add(call)
        call.add_done_callback(self._forget)
        return call

    def _forget(self, call: Any) -> None:
        self._calls.discard(call)
        self._silent.discard(call)

    def note_silent(self, call: Any) -> bool:
        """Nothing more is expected from this call, if it is one of this connection's."""
        if call in self._calls:
            self._silent.add(call)
        return call in self._calls

    async def retire(self) -> None:
        """Close it when all calls but the silent ones have ended, within RETIRED_S."""
        until = time.monotonic() + RETIRED_S
        while len(self._calls) > len(self._silent) and time.monotonic() < until:
            await asyncio.sleep(RETIRED_POLL_S)
        await self.close()

    async def close(self) -> None:
        """Close; calls in flight end. (gRPC alone would let them go on.)"""
        for call in list(self._calls):
            call.cancel()
        await self._channel.close()


class TritonChannel:
    """Calls to a server, bytes in and out. Make it inside the event loop that uses it."""

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        """Raises InputError when the TLS files can't be used."""
        self._target = target
        self._tls = WatchedTls(tls) if tls else None
        self._retiring: dict[asyncio.Task[None], Connection] = {}
        self._connection = self._connect()

    def _connect(self) -> Connection:
        return Connection(self._target, self._tls.contents if self._tls else None)

    @property
    def unary(self) -> dict[str, Any]:
        """The unary RPCs by name."""
        return self._connection.unary

    @property
    def stream(self) -> Any:
        """The ModelStreamInfer RPC."""
        return self._connection.stream

    def renew(self) -> bool:
        """Connect again if the TLS files changed; calls in flight finish on the old connection."""
        if self._tls is None or not self._tls.has_changed():
            return False
        self._replace()
        return True

    def drop(self, call: Any) -> None:
        """Give up a stream that stays silent, together with its connection.

        The streams of others on it are read to their end first, and new ones have another.
        """
        if self._connection.note_silent(call):
            self._replace()
        else:
            for retiring in self._retiring.values():
                retiring.note_silent(call)

    def _replace(self) -> None:
        old, self._connection = self._connection, self._connect()
        retiring = asyncio.create_task(old.retire())
        self._retiring[retiring] = old
        retiring.add_done_callback(self._retiring.pop)

    async def close(self) -> None:
        """Close; calls in flight end."""
        for retiring, connection in list(self._retiring.items()):
            retiring.cancel()
            await connection.close()
        await self._connection.close()
