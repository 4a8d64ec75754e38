"""`trt-mtp serve` and `trt-mtp up` as processes: the ready line, how they end, what they refuse."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CliResult
from tests.http_client import ask
from tests.json_outputs import check_output
from tests.programs import read_line
from tests.triton_client import streaming, text_of
from tests.variants import build_engines, make_variant
from trt_mtp.serve.processes import children, is_alive

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One variant that answers."""
    return build_engines(tmp_path_factory.mktemp("serve-cli"), [1])


@pytest.fixture(autouse=True)
def logs_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a failed or killed run leaves out of /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """`trt-mtp` with `arguments` in a process, and its ready line."""
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", "trt_mtp", *map(str, arguments)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        line = read_line(process)
        try:
            check_output(str(arguments[0]), line.decode())
            yield process, json.loads(line)
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def descendants(pid: int) -> set[int]:
    """All living processes below `pid`."""
    below = set(children(pid))
    return below.union(*(descendants(child) for child in below))


def all_end(pids: set[int]) -> bool:
    """Wait until none of them is alive."""
    deadline = time.monotonic() + DEADLINE_S
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_a_signal(engines: Path, number: int) -> None:
    """A served variant answers; a signal ends everything, with exit code 0."""
    with started("serve", engines, "--json") as (process, ready):
        assert ready["schema_version"] == 1
        assert ready["models"] == ["qwen_mtp_k1"]
        with streaming(ready["grpc"]) as stream:
            last = stream.ask("qwen_mtp_k1", text_input="a", sampling_param_max_tokens=2)[-1]
        assert last.outputs["num_output_tokens"] == [2]
        below = descendants(process.pid)
        assert {ready["pid"]} < below
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert not any(is_alive(pid) for pid in below)
        assert not Path(ready["log"]).exists()


def test_a_server_has_a_streaming_interval(engines: Path) -> None:
    """It holds for streams that ask for none, whose answers it doesn't change."""
    with started("serve", engines, "--json", "--streaming-interval", "32") as (_, ready):
        with streaming(ready["grpc"]) as stream:
            request = {"text_input": "a", "sampling_param_max_tokens": 100, "streaming": True}
            held = stream.ask("qwen_mtp_k1", **request)
            plain = stream.ask("qwen_mtp_k1", **request, streaming_interval=1)
            whole = stream.ask("qwen_mtp_k1", **{**request, "streaming": False})
        assert text_of(held) == text_of(plain) == text_of(whole)
        assert len(held) <= 1 + 100 // 32 + 1  # the first one comes at once
        assert len(whole) == 1


def test_nothing_survives_a_serve_that_is_killed(engines: Path) -> None:
    """SIGKILL leaves no time to clean up; Triton and its models end all the same."""
    with started("serve", engines, "--json") as (process, _):
        below = descendants(process.pid)
        process.kill()
        assert all_end(below)


def chat_answer(address: str, draft_length: int, streams: int) -> str:
    """A sampled answer that fills the context, through OpenAI's API."""
    body = {
        "model": f"qwen_mtp:k{draft_length}",
        "messages": [{"role": "user", "content": "a"}],
        "seed": 5,
        "stream": bool(streams),
    }
    reply = ask(
        address, "POST", "/v1/chat/completions", body, headers={"Content-Type": "application/json"}
    )
    if not streams:
        return str(reply.json()["choices"][0]["message"]["content"])
    frames = [json.loads(line[6:]) for line in reply.body.decode().split("\n\n")[:-2]]
    return "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames)


def test_up_routes_to_what_it_built(checkpoint: Path, tmp_path: Path) -> None:
    """`up` builds, serves and routes; a client of the gateway is answered; a signal ends all."""
    arguments = ("--draft-lengths", "0,2", "-o", tmp_path / "engines", "--http-port", "0", "--json")
    with started("up", checkpoint, *arguments) as (process, ready):
        assert [variant["draft_length"] for variant in ready["variants"]] == [0, 2]
        with streaming(ready["gateway"]) as stream:
            answer = stream.ask("qwen_mtp", text_input="a", sampling_param_max_tokens=3)
        assert answer[-1].is_final
        assert (
            len({chat_answer(ready["http"], length, n) for length in (0, 2) for n in (0, 1)}) == 1
        )
        below = descendants(process.pid)
        # Triton, two models with what renders their chat templates, the gateway
        assert len(below) == 6
        process.terminate()  # Ctrl-C leaves no time to a machine that is busy with other things
        assert process.wait(DEADLINE_S) == 0
        assert not any(is_alive(pid) for pid in below)


@pytest.mark.parametrize("option", ["grpc", "http", "metrics"])
def test_a_port_in_use_is_refused(
    cli: Callable[..., CliResult], tmp_path: Path, option: str
) -> None:
    """A port that another program has is one sentence and exit code 2."""
    make_variant(tmp_path, 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = cli("serve", tmp_path, f"--{option}-port", port)
    assert result.code == 2
    assert result.err.startswith(f"trt-mtp: port {port} can't be used (Address already in use)")
    assert f"--{option}-port" in result.err


def test_a_variant_that_cannot_be_opened_is_named(
    cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    """A model that Triton can't load is exit code 1, with the engine's own sentence."""
    make_variant(tmp_path / "engines", 0)
    result = cli("serve", tmp_path / "engines")
    assert result.code == 1
    assert "because qwen_mtp_k0 can't be loaded: " in result.err
    assert "config.json" in result.err.splitlines()[-1] or ".shared/none" in result.err


def fake_triton(folder: Path, script: str) -> Path:
    """A tritonserver double that runs `script`, laid out as an install is."""
    server = folder / "bin" / "tritonserver"
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    for file in (server, stub):
        file.parent.mkdir(parents=True)
    server.write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(0o755)
    stub.write_text(f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0")
    stub.chmod(0o755)
    return server


def test_a_repository_that_cannot_be_written_leaves_nothing(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and no temporary folder: on a full disk, each start would leave one."""
    make_variant(tmp_path / "engines", 0)
    monkeypatch.setenv("TRITONSERVER", str(fake_triton(tmp_path / "triton", "")))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    result = cli("serve", tmp_path / "engines", "--repository", "/proc/none")
    assert result.code == 1
    assert result.err.startswith("trt-mtp: can't write /proc/none/")
    assert result.err.count("\n") == 1
    assert not list(temporary.iterdir())


def test_a_triton_that_dies_at_the_start_shows_its_log(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last lines of the log are in the error, and the exit code is 1."""
    make_variant(tmp_path / "engines", 0)
    server = fake_triton(tmp_path / "triton", "echo no licence for this moon >&2; exit 3")
    monkeypatch.setenv("TRITONSERVER", str(server))
    result = cli("serve", tmp_path / "engines")
    assert result.code == 1
    assert "tritonserver ended with code 3 while starting" in result.err
    assert "  no licence for this moon" in result.err


def test_a_triton_for_another_machine_cannot_be_started(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tritonserver that the system can't run is one sentence and exit code 1."""
    make_variant(tmp_path / "engines", 0)
    server = fake_triton(tmp_path / "triton", "")
    server.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setenv("TRITONSERVER", str(server))
    result = cli("serve", tmp_path / "engines")
    assert result.code == 1
    assert "tritonserver can't be started: " in result.err
    assert "Exec format error" in result.err


def test_triton_for_another_python_is_refused(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A python backend of another Python version couldn't import trt-mtp, and says so."""
    make_variant(tmp_path / "engines", 0)
    server = fake_triton(tmp_path / "triton", "exit 0")
    (tmp_path / "triton/backends/python/triton_python_backend_stub").write_text("libpython3.6.so")
    monkeypatch.setenv("TRITONSERVER", str(server))
    result = cli("serve", tmp_path / "engines")
    assert result.code == 2
    assert "is made for Python 3.6" in result.err


def test_a_wrong_tritonserver_variable_is_refused(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$TRITONSERVER that names no program is exit code 2."""
    make_variant(tmp_path, 0)
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "nothing"))
    result = cli("serve", tmp_path)
    assert result.code == 2
    assert "TRITONSERVER is" in result.err
    assert "not a program that can be run" in result.err
