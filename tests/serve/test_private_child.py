"""What other users of the machine see of a Triton: neither its key nor its requests."""

import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.gateway_fixtures import raw_stream, script_request, write_doubles
from tests.programs import command_line, within
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve import private_files
from trt_mtp.serve.private_child import start_private
from trt_mtp.serve.processes import children
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

KEY = "0123456789abcdef"
CHUNKS = 1_000_000  # of one byte each: Triton 2.51's HTTP keeps a pointer to each on its stack


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Look again and again, from a thread, while something goes on."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(60)


def command_lines(pid: int) -> list[bytes]:
    """Those of the children of `pid` and theirs, as everybody may read them."""
    found: list[bytes] = []
    for child in children(pid):
        found += [command_line(child), *command_lines(child)]
    return found


def test_a_hidden_option_is_never_on_a_command_line(tmp_path: Path) -> None:
    """The program gets it as its last argument; nobody who looks all the time sees it."""
    seen: list[bytes] = []

    def look() -> None:
        seen.extend(command_lines(os.getpid()))

    with looking(look):
        for number in range(30):
            words = tmp_path / str(number)
            process = start_private(
                ["/bin/sh", "-c", 'echo "$@" >"$0"; sleep 0.1', str(words), "--first"],
                [f"--key={KEY}", "--more"],
                dict(os.environ),
                lambda: None,
            )
            with within(process):
                assert process.wait() == 0
            assert words.read_text() == f"--first --key={KEY} --more\n"
    assert any(b"--hidden-0" in line for line in seen)
    assert not any(KEY.encode() in line for line in seen)


def test_what_a_private_child_makes_is_its_users_alone(tmp_path: Path) -> None:
    """A mode that opens a file to others does nothing, one that closes it does."""
    code = (
        "import os, sys; f = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o666);"
        "os.fchmod(f, 0o644); os.fchmod(os.open(sys.argv[2], os.O_CREAT), 0o400)"
    )
    process = start_private(
        [sys.executable, "-c", code, str(tmp_path / "open")],
        [str(tmp_path / "closed")],
        dict(os.environ),
        lambda: None,
    )
    with within(process):
        assert process.wait() == 0
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o400


def test_a_machine_that_can_hide_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where seccomp or ptrace is forbidden, nothing is started, and a sentence says so."""
    monkeypatch.setattr(private_files, "SECCOMP_SET_MODE_FILTER", 99)
    with pytest.raises(TrtMtpError, match="this machine forbids ptrace"):
        start_private(["/bin/true"], [], dict(os.environ), lambda: None)
    monkeypatch.setattr(private_files, "SYSCALLS", {"vax": (1, 2, 3)})
    with pytest.raises(TrtMtpError, match="trt-mtp serves on vax, not on"):
        start_private(["/bin/true"], [], dict(os.environ), lambda: None)


def test_a_program_that_is_not_there_is_an_os_error() -> None:
    """As subprocess has it."""
    with pytest.raises(FileNotFoundError):
        start_private(["/nowhere/tritonserver"], ["--key"], dict(os.environ), lambda: None)


def test_nothing_of_a_triton_is_readable_by_others(tmp_path: Path) -> None:
    """From its first moment on: the key, the memory with the prompts, the log."""
    (tmp_path / "notes").mkdir()
    models = write_doubles(tmp_path / "repository", tmp_path / "notes")
    server = TritonServer(find_triton(), tmp_path / "repository", models, tmp_path)
    lines: list[bytes] = []
    modes: dict[str, int] = {}

    def look() -> None:
        lines.extend(command_lines(os.getpid()))
        for region in Path("/dev/shm").glob(f"{server.shm_prefix}*"):
            modes[region.name] = modes.get(region.name, 0) | stat.S_IMODE(region.stat().st_mode)

    try:
        with looking(look):
            server.start()
        assert server.admin_key
        assert not any(server.admin_key.encode() in line for line in lines)
        assert any(b"tritonserver" in line for line in lines)
        assert modes
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
        assert server.admin_key not in server.log.read_text()
    finally:
        server.stop()


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    links: list[str] = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was read
            links.append(os.readlink(link))
    inodes = {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
    tables = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table[1:]]
    return {
        int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes
    }


def test_chunks_of_one_byte_end_no_triton(tmp_path: Path) -> None:
    """A local user ended Triton 2.51 through its HTTP (CVE-2025-23310), which is off now."""
    (tmp_path / "notes").mkdir()
    models = write_doubles(tmp_path / "repository", tmp_path / "notes")
    server = TritonServer(find_triton(), tmp_path / "repository", models, tmp_path)
    try:
        server.start()
        assert server.http_url == ""
        ports = listening_ports(server.pid)
        assert len(ports) == 2  # gRPC and metrics
        for port in ports:
            send_chunks(port)
        said: list[str] = []
        server.check(said.append)
        assert said == []
        with raw_stream(server.grpc_url) as stream:
            stream.send(script_request("qwen_mtp_k1"))
            assert not stream.receive().error_message
    finally:
        server.stop()


def send_chunks(port: int) -> None:
    """A POST whose body comes in very many pieces; read until the other side closes."""
    head = b"POST /v2/models/qwen_mtp_k1/generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            connection.sendall(
                head + b"Connection: close\r\n\r\n" + b"1\r\n \r\n" * CHUNKS + b"0\r\n\r\n"
            )
            while connection.recv(1 << 16):
                pass
        except OSError:
            return
