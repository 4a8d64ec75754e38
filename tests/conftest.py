"""Fixtures that more than one file of tests uses."""

import os

# before numpy and torch come: their threads spin, which makes small matrices slow where other
# programs want the cores (half as fast, with two of them on two cores)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, settings

import trt_mtp  # noqa: F401 (sets up gRPC, which what follows imports)
from tests.json_outputs import checking
from tests.run_guard import RunGuard
from tests.tiny_model import make_checkpoint
from tests.watchdog import LIMIT_SHARE
from trt_mtp.build.template_process import RENDERERS
from trt_mtp.cli import main
from trt_mtp.serve.triton import TritonServer

# tests run beside each other: a server that is given no port takes a free one
os.environ.setdefault("TRT_MTP_SERVE_GRPC_PORT", "0")
os.environ.setdefault("TRT_MTP_SERVE_METRICS_PORT", "0")

# vLLM has an environment of its own, which `make test-vllm` makes and names
collect_ignore = [] if "TRT_MTP_VLLM_PYTHON" in os.environ else ["vllm"]

# nothing here asserts on time
settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no-deadline")


# These begin first: a worker of pytest-xdist that began with one late would be alone in the end.
LONG = (
    "tests/end_to_end/",
    "tests/controller/rollout/",
    "tests/serve/",
    "tests/controller/calibrate/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders of long tests first, all else in its order."""
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in LONG])


@pytest.hookimpl(tryfirst=True)  # before anybody looks for what is left running
def pytest_sessionfinish() -> None:
    """End the processes that render chat templates."""
    RENDERERS.close()


def pytest_sessionstart(session: pytest.Session) -> None:
    """From here on a run that is stuck ends, and nothing that it started survives it."""
    limit_s = LIMIT_SHARE * float(session.config.getini("timeout"))
    session.config.pluginmanager.register(RunGuard(session.config, limit_s))
    click.echo = checking(click.echo)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a shell's `&` has it ignored, also by the programs that tests start and interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight checkpoint; read-only for tests, which make their own to change."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen-tiny")


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One Triton of doubles for all tests that leave it alive."""
    from tests.gateway_fixtures import triton_of_doubles  # grpc: not for every run

    with triton_of_doubles(tmp_path_factory.mktemp("doubles")) as server:
        yield server


@dataclass(frozen=True, slots=True)
class CliResult:
    """How a run of `trt-mtp` ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CliResult]:
    """A function that runs `trt-mtp` with some arguments in this process."""

    def run(*args: str | Path) -> CliResult:
        monkeypatch.setattr(sys, "argv", ["trt-mtp", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return CliResult(ended.value.code, captured.out, captured.err)

    return run
