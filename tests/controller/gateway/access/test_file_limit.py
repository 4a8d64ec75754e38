"""A gateway that may open few files says so before it takes a connection."""

import subprocess
import sys

import pytest

from tests.programs import TIMEOUT_S


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
