"""Fixtures that more than one file of tests uses."""

import os

# before numpy comes: its threads spin, which slows small matrices down on a loaded machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny_model import make_checkpoint
from trt_mtp.cli import main

# Processes are started while this one is a gRPC client; gRPC's fork handlers crash the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

settings.register_profile("no-deadline", deadline=None)  # nothing here asserts on time
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight checkpoint; read-only for tests, which make their own to change."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen-tiny")


@pytest.fixture(scope="session")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed checkpoint whose drafts are right about half of the time."""
    from tests.engine_fixtures import make_drafting_checkpoint, pack  # numba: not for every run

    folder = tmp_path_factory.mktemp("drafting")
    return pack(make_drafting_checkpoint(folder / "checkpoint"), folder / "packed")


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
