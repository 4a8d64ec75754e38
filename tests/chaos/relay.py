"""A wire that can be cut: TCP connections forwarded to a target, held up or reset on demand."""

import asyncio
import contextlib
import socket
import struct

CHUNK = 64 * 1024
LINGER_0 = struct.pack("ii", 1, 0)  # a close sends RST and throws away what was not sent


class Relay:
    """Forwards every connection to `address` to port `target` of 127.0.0.1."""

    def __init__(self, target: int, listener: socket.socket) -> None:
        self.address = "{}:{}".format(*listener.getsockname())
        self._listener = listener
        self._target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    def hold(self) -> None:
        """Nothing gets through any more, as if every packet were lost; connections stay open."""
        self._flows.clear()

    def release(self) -> None:
        """What was held goes on, as TCP sends again what was lost."""
        self._flows.set()

    def reset(self) -> None:
        """All connections end with RST, at both ends."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is closing already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            writer.transport.abort()

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._flows.wait()
            await self._connect(reader, writer)
        except OSError:
            pass  # the target is down: the client is cut off
        except asyncio.CancelledError:
            pass  # stopped; asyncio's own callback would log it
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(far_writer)
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(far_writer)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
