"""NVIDIA's AIPerf, unchanged, against OpenAI's API of `trt-mtp up`: does it report acceptance?

`python -m tests.aiperf` (`make test-aiperf`) installs AIPerf, 1.3 GB, into .venv-aiperf, and
measures chat completions and completions of the small checkpoint. Exit 1 if a request failed, an
answer has another length than was asked for, or nothing is said of drafts.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.programs import ready_line
from trt_mtp.controller.up import default_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-aiperf"
VERSION = "0.13.0"
ENDPOINTS = ("chat", "completions")
NUM_REQUESTS, NUM_TOKENS = 6, 16
WAIT_S = 1800.0
# with one of them, AIPerf looks for the tokenizer's folder in the cache of Hugging Face
UNSET = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def main() -> int:
    """Measure each endpoint and print what is wrong with its report."""
    program = prepare()
    problems = []
    up = ["up", default_checkpoint(), "--draft-lengths", "3", "--gateway-port", "0"]
    with ready_line([*up, "--http-port", "0", "--json"]) as stack:
        for endpoint in ENDPOINTS:
            report = measure(program, stack["http"], endpoint)
            problems += [f"{endpoint}: {problem}" for problem in problems_of(report)]
            print(endpoint, report.get("spec_decode_acceptance_length"))
    print("\n".join(problems) or "AIPerf's reports are whole")
    return 1 if problems else 0


def prepare() -> Path:
    """The program, in an environment of its own."""
    program = VENV / "bin" / "aiperf"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=WAIT_S)
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"aiperf=={VERSION}"], check=True, timeout=WAIT_S)
    return program


def measure(program: Path, address: str, endpoint: str) -> dict[str, Any]:
    """AIPerf's report of NUM_REQUESTS answers, NUM_TOKENS each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(program), "profile", "--model", "qwen_mtp", "--url", f"http://{address}",
            "--endpoint-type", endpoint, "--streaming", "--use-server-token-count",
            "--tokenizer", default_checkpoint(), "--concurrency", "2",
            "--request-count", str(NUM_REQUESTS), "--synthetic-input-tokens-mean", "32",
            "--output-tokens-mean", str(NUM_TOKENS), "--extra-inputs", "ignore_eos:true",
            "--extra-inputs", f"min_tokens:{NUM_TOKENS}", "--ui", "none",
            "--artifact-dir", folder,
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in UNSET}
        subprocess.run(command, env=environment, check=True, timeout=WAIT_S)
        report: dict[str, Any] = json.loads(
            (Path(folder) / "profile_export_aiperf.json").read_text(encoding="utf-8")
        )
        return report


def problems_of(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with a report."""
    checks = {
        "requests are missing": _mean(report, "request_count") == NUM_REQUESTS,
        "requests failed": not report.get("error_summary"),
        "answers have another length": _mean(report, "output_sequence_length") == NUM_TOKENS,
        "no acceptance length": 1 <= _mean(report, "spec_decode_acceptance_length") <= 4,
        "no drafts": _mean(report, "total_draft_tokens") > 0,
    }
    return [problem for problem, is_right in checks.items() if not is_right]


def _mean(report: Mapping[str, Any], name: str) -> float:
    return float(report.get(name, {}).get("avg", 0.0))


if __name__ == "__main__":
    sys.exit(main())
