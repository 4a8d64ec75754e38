"""The `openai` package's own tests, from its own distribution, against the gateway's HTTP port.

`python -m tests.conformance` (`make conformance`) gets the source distribution of the version that
the tests use from PyPI and what its tests need, into .venv-conformance. Exit 1 when a test fails
that is not expected to. Only this glue is ours.
"""

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.programs import ready_line
from trt_mtp.controller.up import default_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-conformance"
NEEDS = (
    "pytest", "pytest-asyncio", "respx", "dirty-equals", "inline-snapshot", "time-machine",
    "nest_asyncio", "rich", "httpx-aiohttp",
)  # fmt: skip
FILES = (
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_completions.py",
    "tests/api_resources/test_models.py",
)
MODELS = re.compile(r'model="([\w.-]+)"')
# names of tests -> why they fail
EXPECTED = (
    (re.compile(r"test_method_create_with_all_params"), "all parameters at once, with audio"),
    (re.compile(r"chat.*_(retrieve|update|list|list_with_all_params)$"), "no stored completions"),
    (re.compile(r"_delete$"), "no deletion of completions and models"),
)
WAIT_S = 600.0


def main() -> int:
    """Run them and print what became of them."""
    source = prepare(version("openai"))
    with door(aliases(source)) as url:
        results = run(source, url)
    for (outcome, why), count in sorted(results.items()):
        print(f"{count:4}  {outcome}{f': {why}' if why else ''}")
    return 1 if any(outcome == "failed" and not why for outcome, why in results) else 0


def prepare(number: str) -> Path:
    """The unpacked source distribution of the `openai` package, with an environment beside it."""
    source = VENV / f"openai-{number}"
    if source.exists():
        return source
    python = VENV / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    download = [*pip, "download", "--no-deps", "--no-binary", "openai", "-d", str(VENV)]
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [*pip, "install", f"openai=={number}", *NEEDS],
        [*download, f"openai=={number}"],
    ):
        subprocess.run(command, check=True, timeout=WAIT_S)
    with tarfile.open(VENV / f"openai-{number}.tar.gz") as archive:
        archive.extractall(VENV, filter="data")
    return source


def aliases(source: Path) -> list[str]:
    """The models that its tests ask for."""
    texts = [(source / file).read_text(encoding="utf-8") for file in FILES]
    return sorted({name for text in texts for name in MODELS.findall(text)} | {"model"})


@contextmanager
def door(names: list[str]) -> Iterator[str]:
    """The address of a gateway whose model has these names, too."""
    up = ["up", default_checkpoint(), "--http-port", "0", "--json"]
    with ready_line(up) as stack:
        options = [option for name in names for option in ("--model-alias", name)]
        gateway = ["gateway", "--triton", stack["triton"]["grpc"], "--port", "0", *options]
        with ready_line([*gateway, "--http-port", "0", "--json"]) as own:
            yield f"http://{own['http']}/v1"


def run(source: Path, url: str) -> Counter[tuple[str, str]]:
    """How many tests had each outcome, with the reason of a failure that is expected."""
    report = VENV / "report.xml"
    command = [
        str(VENV / "bin" / "python"), "-m", "pytest", "-q", "-o", "addopts=", "--tb=no",
        "-p", "no:cacheprovider", f"--junitxml={report}", *FILES,
    ]  # fmt: skip
    environment = {**os.environ, "TEST_API_BASE_URL": url}
    subprocess.run(
        command, cwd=source, env=environment, stdout=subprocess.DEVNULL, timeout=WAIT_S, check=False
    )
    return Counter(outcome(case) for case in ElementTree.parse(report).getroot().iter("testcase"))


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    """Passed, failed or skipped, and why."""
    if case.find("skipped") is not None:
        return "skipped", ""
    if case.find("failure") is None and case.find("error") is None:
        return "passed", ""
    name = f"{case.get('classname')}.{(case.get('name') or '').partition('[')[0]}"
    return "failed", next((why for pattern, why in EXPECTED if pattern.search(name)), "")


if __name__ == "__main__":
    sys.exit(main())
