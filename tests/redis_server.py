"""A real Redis on a free port of 127.0.0.1, with nothing on disk, for tests to stop and start."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.programs import TIMEOUT_S, read_line
from trt_mtp.serve.processes import free_ports


class RedisServer:
    """`redis-server` as a process."""

    def __init__(self, *arguments: str, password: str = "", tls: bool = False) -> None:
        """Start it with further `arguments`; with `tls` they name its files."""
        self.port = free_ports({"redis": 0})["redis"]
        self._password = password
        self._ports = ("0", str(self.port)) if tls else (str(self.port), "0")
        self._arguments = arguments
        self.start()

    @property
    def url(self) -> str:
        """For --shared."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, on its port; returns when it takes connections."""
        found = shutil.which("redis-server")
        assert found, "apt-get install --no-install-recommends redis-server"
        command = [found, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--port", self._ports[0], "--tls-port", self._ports[1], *self._arguments]
        command += ["--requirepass", self._password]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
        line = read_line(self.process)
        while line and b"Ready to accept connections" not in line:
            line = read_line(self.process)
        if not line:
            self.kill()
        assert line, f"redis-server ended while starting: {command}"

    def kill(self) -> None:
        """End it at once; what it knew is gone."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def command(self, *words: str) -> bytes:
        """The raw answer to one command, of a server without TLS."""
        with closing(socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)) as connection:
            if self._password:
                connection.sendall(b"AUTH " + self._password.encode() + b"\r\n")
                connection.recv(100)
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(1 << 20)

    def names(self) -> list[str]:
        """Every key in it."""
        return [line for line in self.command("KEYS", "*").decode().split("\r\n") if ":" in line]


@contextmanager
def redis_server(*arguments: str, password: str = "", tls: bool = False) -> Iterator[RedisServer]:
    """A server that is gone at the end."""
    server = RedisServer(*arguments, password=password, tls=tls)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def secret(path: Path, text: str) -> Path:
    """A file with a password, with the newline that editors put there."""
    path.write_text(f"{text}\n")
    return path
