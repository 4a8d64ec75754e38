"""Triton started again and stopped: deaths, starts that fail, answers in flight at the end."""

import fcntl
import os
import shutil
import signal
import socket
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gateway_fixtures import wait_until, write_doubles
from tests.triton_client import streaming
from tests.variants import build_engines
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve import held_ports, restarts, triton
from trt_mtp.serve.ports import Ports
from trt_mtp.serve.processes import free_ports, is_alive
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

K0 = "qwen_mtp_k0"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One variant of a small checkpoint."""
    return build_engines(tmp_path_factory.mktemp("serve"), [0])


def answers(server: TritonServer) -> bool:
    """True if the variant answers a request whole."""
    with streaming(server.grpc_url) as stream:
        return stream.ask(K0, text_input="a", sampling_param_max_tokens=1)[-1].is_final


def test_what_dies_often_is_not_given_up(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a server dies, it is started again; the pauses that it has are said."""
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)
    said: list[str] = []
    with serving(resolve_variants([engines / "k0"])) as running:
        for number in range(1, 9):
            os.kill(running.pid, signal.SIGKILL)

            def was_noticed(number: int = number) -> bool:
                running.check(said.append)
                return len([line for line in said if "; starting again" in line]) == number

            wait_until(was_noticed)
            assert answers(running)
    ended = "tritonserver ended with code -9; starting again"
    starts = [line for line in said if line.startswith("tritonserver ended")]
    assert starts == [ended] + [f"{ended} in 0.01 s"] * 7


def test_a_cleaner_of_tmp_ends_nothing(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-tmpfiles passes by the folder, which is locked; what others remove is made again."""
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)
    said: list[str] = []
    with serving(resolve_variants([engines / "k0"])) as running:
        folder = running.log.parent
        descriptor = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):  # as systemd-tmpfiles asks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        shutil.rmtree(folder)
        os.kill(running.pid, signal.SIGKILL)

        def is_back() -> bool:
            running.check(said.append)
            return running.pid != 0 and bool(said)

        wait_until(is_back)
        assert answers(running)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        shutil.rmtree(folder)
        folder.symlink_to(engines)  # somebody else's, in a folder where anybody can make one
        os.kill(running.pid, signal.SIGKILL)

        def is_refused() -> bool:
            running.check(said.append)
            return "belongs to another user" in said[-1]

        wait_until(is_refused)
        folder.unlink()


@pytest.mark.parametrize("name", ["grpc", "metrics"])
def test_a_port_that_is_taken_at_the_last_moment(
    engines: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another program may take a free port before Triton binds it; then other ports are taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first_answer = [{name: port}]

        def free_ports_double(wanted: dict[str, int], hosts: dict[str, str]) -> dict[str, int]:
            return free_ports(wanted, hosts) | (first_answer.pop() if first_answer else {})

        monkeypatch.setattr(held_ports, "free_ports", free_ports_double)
        with serving(resolve_variants([engines / "k0"])) as running:
            assert not first_answer
            assert getattr(running, f"{name}_url") != f"127.0.0.1:{port}"
            assert answers(running)


@pytest.mark.parametrize(("num_crashes", "is_up"), [(1, True), (99, False)])
def test_triton_that_aborts_while_it_starts_is_started_again(
    tmp_path: Path, num_crashes: int, is_up: bool
) -> None:
    """As it does at times on a busy machine; when it always does, that is an error."""
    install, script, starts = find_triton(), tmp_path / "tritonserver", tmp_path / "starts"
    script.write_text(
        f"#!/bin/sh\necho >>{starts}\n"
        f"[ $(wc -l <{starts}) -gt {num_crashes} ] || kill -ABRT $$\n"
        f'exec {install.server} "$@"\n'
    )
    script.chmod(0o755)
    (tmp_path / "notes").mkdir()
    models = write_doubles(tmp_path / "repository", tmp_path / "notes")
    failing = replace(install, server=script)
    server, said = TritonServer(failing, tmp_path / "repository", models, tmp_path), list[str]()
    try:
        if is_up:
            server.start(said.append)
            assert "tritonserver ended with code -6 while starting; starting again" in said
            assert len(server.stub_pids) == len(models)
        else:
            with pytest.raises(TrtMtpError, match="ended with code -6 while starting"):
                server.start(said.append)
            assert starts.read_text().count("\n") == triton.START_ATTEMPTS
    finally:
        server.stop()


def test_a_restart_that_fails_is_repeated_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start names what became of the one before."""
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)
    install, script, flag = find_triton(), tmp_path / "tritonserver", tmp_path / "abort"
    abort = f"if [ -e {flag} ]; then rm {flag}; kill -ABRT $$; fi"
    script.write_text(f'#!/bin/sh\n{abort}\nexec {install.server} "$@"\n')
    script.chmod(0o755)
    (tmp_path / "notes").mkdir()
    models = write_doubles(tmp_path / "repository", tmp_path / "notes")
    why = "the last start failed: tritonserver ended with code -6 while starting; starting again"
    aborting = replace(install, server=script)
    server, said = TritonServer(aborting, tmp_path / "repository", models, tmp_path), list[str]()
    try:
        server.start()
        flag.touch()
        os.kill(server.pid, signal.SIGKILL)

        def is_told() -> bool:
            server.check(said.append)
            return any(line.startswith(why) for line in said)

        wait_until(is_told)
        assert len(server.stub_pids) == len(models)
    finally:
        server.stop()


def test_answers_in_flight_are_finished_before_the_stop(engines: Path) -> None:
    """Stopping waits for answers; then no process, shared memory or temporary folder is left."""
    with serving(resolve_variants([engines / "k0"])) as running, streaming(running.grpc_url) as s:
        pids = (running.pid, *running.stub_pids)
        regions = f"{running.shm_prefix}*"
        folder = running.log.parent
        assert len(pids) == 2
        assert list(Path("/dev/shm").glob(regions))
        s.send(K0, text_input="a", streaming=True, sampling_param_max_tokens=1000)
        s.receive()
        running.stop()
        assert s.receive_all()[-1].outputs["num_output_tokens"] == [1000]
    assert not any(is_alive(pid) for pid in pids)
    assert not list(Path("/dev/shm").glob(regions))
    assert not folder.exists()


def test_no_other_program_takes_the_place_of_one_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateways would send it prompts. A port of metrics can be taken, which stops nothing."""
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)
    (tmp_path / "notes").mkdir()
    models, said = write_doubles(tmp_path / "repository", tmp_path / "notes"), list[str]()
    ports = Ports(http=0)
    server = TritonServer(find_triton(), tmp_path / "repository", models, tmp_path, ports)
    try:
        server.start()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(server.pid))
        taken = int(server.metrics_url.rpartition(":")[2])
        for url in (server.grpc_url, server.http_url):
            with pytest.raises(OSError, match="in use"), listening(int(url.rpartition(":")[2])):
                pass
        with listening_soon(taken):

            def is_back() -> bool:
                server.check(said.append)
                return f"another program has port {taken}; the metrics are at" in "".join(said)

            wait_until(is_back)
            server.check(said.append)
            assert server.metrics_url != f"127.0.0.1:{taken}"
            assert is_alive(server.pid)
    finally:
        server.stop()
    for url in (server.grpc_url, server.http_url):
        listening_soon(int(url.rpartition(":")[2])).close()


def listening(port: int) -> socket.socket:
    """A server of another program, which takes all that the kernel gives it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def listening_soon(port: int) -> socket.socket:
    """The same once all threads of a process that was killed have ended, which have the port."""
    found: list[socket.socket] = []

    def is_free() -> bool:
        with suppress(OSError):
            found.append(listening(port))
        return bool(found)

    wait_until(is_free)
    return found[0]
