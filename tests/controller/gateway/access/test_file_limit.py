"""A gateway that may open few files says so before it takes a connection, or gets by with them."""

import contextlib
import http.client
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.controller.gateway.gateway_process import gateway_process
from tests.gateway_fixtures import wait_until
from tests.http_client import ask
from tests.programs import TIMEOUT_S
from trt_mtp.serve.triton import TritonServer


@pytest.mark.parametrize(
    ("limit", "options", "says"),
    [
        (64, [], "a process may open 64 files at once here; set that limit (ulimit -n) to 328"),
        (400, ["--max-connections", "1000"], "to 2200 or more, or --max-connections lower"),
    ],
)
def test_too_few_files_are_one_sentence(limit: int, options: list[str], says: str) -> None:
    """Accepting without a file left answers nobody, and fills the log."""
    gateway = [sys.executable, "-m", "trt_mtp", "gateway", "--triton", "127.0.0.1:1", *options]
    run = subprocess.run(
        ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash", *gateway],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert says in run.stderr
    assert run.stderr.count("\n") == 1


def is_live(address: str) -> bool:
    """Whether it takes a connection, and answers."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(address, "GET", "/v2/health/live").status == 200
    return False


def test_many_at_once_take_no_more_files_than_there_are(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """Those that are too many are closed before the next ones are accepted."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--http-port", "0")
    limits = ("--max-connections", "16")
    with (
        gateway_process(tmp_path / "log", *options, *limits) as gateway,
        contextlib.ExitStack() as all_,
    ):
        pid = gateway.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (120, 120))
        host, _, port = gateway.ready["http"].rpartition(":")
        gateway.process.send_signal(signal.SIGSTOP)  # so that they wait together
        for _ in range(250):
            client = all_.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((host, int(port)))
        gateway.process.send_signal(signal.SIGCONT)
        all_.close()
        wait_until(lambda: is_live(gateway.ready["http"]))
        assert "Too many open files" not in gateway.log
