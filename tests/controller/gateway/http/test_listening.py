"""The end of listening, with connections at every point of being accepted."""

import asyncio
import socket

import pytest

from trt_mtp.controller.gateway.http.server import stop_listening


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_was_accepted_is_not_dropped(turns: int) -> None:
    """However many turns of the loop ago it came, this server or the one after it has it."""

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            servers = [await loop.create_server(Greeting, sock=listener.dup())]
            await asyncio.sleep(0)
            client = socket.create_connection(listener.getsockname(), 60)
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            await stop_listening(servers[0])
            servers.append(await loop.create_server(Greeting, sock=listener.dup()))
            try:
                return await asyncio.wait_for(loop.sock_recv(client, 100), 60)
            finally:
                client.close()
                servers[1].close()

    assert asyncio.run(run()) == b"hello"


class Greeting(asyncio.Protocol):
    """Says hello and leaves."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()
