"""The bill of materials and the lock files."""

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tools.sbom import bill, locked_hashes, normal

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_that_is_locked_has_a_hash(lock: str) -> None:
    """pip refuses what has none as soon as one has one, and a file that was exchanged."""
    text = (ROOT / lock).read_text()
    hashes = locked_hashes(text)
    assert len(hashes) > 20
    assert all(hashes.values())
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    assert len(pins) == len(hashes)


def test_the_bill_lists_what_is_installed() -> None:
    """Every package by name and version, with the hashes of the lock files, and Triton in one."""
    listed = {entry["name"]: entry for entry in bill()["components"]}
    installed = {normal(package.metadata["Name"]) for package in distributions()}
    assert set(listed) == installed - {"trt-mtp"}
    files = listed["aiohttp"]["externalReferences"][0]["hashes"]
    assert all(re.fullmatch("[0-9a-f]{64}", file["content"]) for file in files)
    assert listed["nvidia-pytriton"]["components"][0]["name"] == "tritonserver"


def test_the_bill_is_the_same_each_time() -> None:
    """So that two of them can be compared."""
    first, second = (
        subprocess.run([sys.executable, "-m", "tools.sbom"], capture_output=True, cwd=ROOT).stdout
        for _ in range(2)
    )
    assert first == second
    assert json.loads(first)["bomFormat"] == "CycloneDX"


def test_each_accepted_finding_has_its_reason() -> None:
    """A line is an advisory's id and why it is accepted."""
    for line in (ROOT / "audit-accepted.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"(CVE|GHSA|PYSEC)-[\w-]+ +\S.{20,}", line)
