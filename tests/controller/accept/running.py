"""`trt-mtp accept` as a user runs it: a process with an environment that has secrets in it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.programs import TIMEOUT_S

ROOT = Path(__file__).parents[3]
SECRET = "hunter2correcthorse"  # in paths, variables, prompts and names of what is accepted


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        """The record that it wrote."""
        value: dict[str, Any] = json.loads((self.folder / "record.json").read_text())
        return value

    @property
    def page(self) -> str:
        """The page that it wrote."""
        return (self.folder / "record.md").read_text()

    def status(self, step: str) -> str:
        """How a step ended."""
        return next(str(one["status"]) for one in self.record["steps"] if one["name"] == step)

    def checks(self) -> dict[str, tuple[str, str]]:
        """Status and reason of each smoke check."""
        return {one["name"]: (one["status"], one["reason"]) for one in self.record["checks"]}

    def require_no_secret(self) -> None:
        """Nothing that was planted, and no name of this machine, is in the record."""
        for text in (json.dumps(self.record), self.page):
            assert SECRET not in text
            assert str(self.folder) not in text
            assert socket.gethostname() not in text


def accept(
    folder: Path, checkpoint: Path, *arguments: str, paths: Sequence[Path] = (), **variables: str
) -> Ran:
    """Run it; `paths` go into PYTHONPATH, `variables` into the environment."""
    python_path = [str(path) for path in paths] + [path for path in sys.path if path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(python_path),
        "HF_TOKEN": SECRET,
        "USER": SECRET,
        **variables,
    }
    command = ["-m", "trt_mtp", "accept", str(checkpoint), "-o", str(folder), *arguments]
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=TIMEOUT_S,
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr, folder)
