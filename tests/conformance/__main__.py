"""Tests that other projects wrote for OpenAI's API, against the gateway's HTTP port.

`python -m tests.conformance [--vllm DIR] [--only NAME] [--verbose]` (`make conformance`) gets the
source distributions of `openai` and of llama-cpp-python, which has llama.cpp's, from PyPI, and what
their tests need, into .venv-conformance; vLLM's are run from a checkout. Exit 1 when a test fails
that is not expected to. Only this glue is ours.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.conformance.environment import PYTHON, ROOT, VENV, WAIT_S, pip
from tests.conformance.suites import Suite, llama_cpp_suite, openai_suite, vllm_suite
from tests.programs import ready_line
from trt_mtp.controller.up import default_checkpoint

UNEXPECTED = "NOT EXPECTED"
Outcome = tuple[str, str, str]  # passed, failed or skipped; why; the test's name


def main() -> int:
    """Run the suites and print what became of them."""
    parser = argparse.ArgumentParser(description="Run other projects' tests of OpenAI's API.")
    parser.add_argument("--vllm", type=Path, metavar="DIR", help="a checkout of vLLM")
    parser.add_argument("--only", default="", help="run suites whose name begins so")
    parser.add_argument("--verbose", action="store_true", help="name each test that failed")
    options = parser.parse_args()
    suites = [openai_suite(version("openai")), llama_cpp_suite()]
    if options.vllm:
        suites.append(vllm_suite(options.vllm.resolve()))
    suites = [suite for suite in suites if suite.name.startswith(options.only)]
    pip("install", "pytest", *sorted({need for suite in suites for need in suite.needs}))
    with door(sorted({name for suite in suites for name in suite.models})) as url:
        results = [show(suite, run(suite, url), options.verbose) for suite in suites]
    return 0 if all(results) else 1


@contextmanager
def door(names: Sequence[str]) -> Iterator[str]:
    """The address of a gateway whose model has these names, too."""
    up = ["up", default_checkpoint(), "--http-port", "0", "--gateway-port", "0", "--json"]
    with ready_line(up) as stack:
        options = [option for name in names for option in ("--model-alias", name)]
        gateway = ["gateway", "--triton", stack["triton"]["grpc"], "--port", "0", *options]
        with ready_line([*gateway, "--http-port", "0", "--json"]) as own:
            yield str(own["http"])


def run(suite: Suite, url: str) -> list[Outcome]:
    """What became of each test."""
    report = VENV / "report.xml"
    report.unlink(missing_ok=True)
    command = [
        str(PYTHON), "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider",
        f"--junitxml={report}", *suite.options, *suite.files,
    ]  # fmt: skip
    paths = os.pathsep.join([str(suite.folder), str(ROOT / "tests" / "conformance")])
    environment = {**os.environ, "PYTHONPATH": paths, **suite.environment(url)}
    log = VENV / f"{suite.name.split()[0]}.log"
    with log.open("w") as output:
        subprocess.run(
            command, cwd=suite.folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
            timeout=WAIT_S, check=False,
        )  # fmt: skip
    if not report.exists():
        sys.exit(f"the tests of {suite.name} were not run: see {log}")
    return [outcome(suite, case) for case in ElementTree.parse(report).getroot().iter("testcase")]


def outcome(suite: Suite, case: ElementTree.Element) -> Outcome:
    """Passed, failed or skipped, and why."""
    name = f"{case.get('classname')}.{case.get('name') or ''}"
    if case.find("skipped") is not None:
        return "skipped", "", name
    if case.find("failure") is None and case.find("error") is None:
        return "passed", "", name
    plain = name.partition("[")[0]
    whys = (why for pattern, why in suite.expected if pattern.search(plain))
    return "failed", next(whys, UNEXPECTED), name


def show(suite: Suite, outcomes: list[Outcome], is_verbose: bool) -> bool:
    """Print a suite's results; returns whether all failures were expected."""
    counts = Counter((what, why) for what, why, _ in outcomes)
    print(suite.name)
    for (what, why), count in sorted(counts.items(), key=lambda each: each[0]):
        print(f"{count:6}  {what}{f': {why}' if why else ''}")
        for name in [n for w, y, n in outcomes if (w, y) == (what, why)]:
            if why == UNEXPECTED or (is_verbose and what == "failed"):
                print(f"        {name}")
    return ("failed", UNEXPECTED) not in counts


if __name__ == "__main__":
    sys.exit(main())
