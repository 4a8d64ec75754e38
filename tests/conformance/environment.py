"""The environment of the suites, .venv-conformance, and source distributions from PyPI in it."""

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-conformance"
PYTHON = VENV / "bin" / "python"
WAIT_S = 600.0


def pip(*arguments: str) -> None:
    """Run pip in the environment, which is made if there is none."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=WAIT_S)
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, timeout=WAIT_S)


def sdist(name: str, version: str) -> Path:
    """The unpacked source distribution of a package."""
    base = f"{name.replace('-', '_')}-{version}"
    folder = VENV / base
    if not folder.exists():
        pip("download", "--no-deps", "--no-binary", name, "-d", str(VENV), f"{name}=={version}")
        with tarfile.open(VENV / f"{base}.tar.gz") as archive:
            archive.extractall(VENV, filter="data")
    return folder
