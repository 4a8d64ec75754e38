"""docs/rollout.md from K = 3 to K = 5 and back: its commands in order, with its exit codes.

Only ports, durations, shares and numbers of requests and the tolerance are others: nothing is timed
here.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.programs import TIMEOUT_S, read_line
from trt_mtp.serve.processes import free_ports

ROOT = Path(__file__).resolve().parents[3]
SECTION = "## From K = 3 to K = 5, and back"
READY = {"trt-mtp serve": "serving ", "trt-mtp gateway": "gateway at ", "while ": ""}
WAIT_S = 120


def commands() -> list[str]:
    """The section's commands, those of several lines in one piece."""
    page = (ROOT / "docs/rollout.md").read_text(encoding="utf-8")
    section = page.partition(SECTION)[2].partition("\n## ")[0]
    found, lines = list[str](), list[str]()
    for line in "\n".join(re.findall(r"^```\n(.*?)^```", section, re.S | re.M)).splitlines():
        lines.append(line)
        checked = subprocess.run(
            ["bash", "-nc", "\n".join(lines)], capture_output=True, text=True, timeout=WAIT_S
        )
        if not checked.returncode and not checked.stderr and not line.endswith("\\"):
            found.append("\n".join(lines))
            lines = []
    assert not lines
    return [command for command in found if command]


def adapted(command: str, ports: dict[str, int]) -> str:
    """The command with free ports, quick steps of few short requests and a wide tolerance."""
    for number, port in ports.items():
        command = re.sub(rf"\b{number}\b", str(port), command)
    command = re.sub(r"at_least_s: \d+", "at_least_s: 0", command)
    command = re.sub(r"(shadow|set_weight): (5|20),", r"\1: 50,", command)
    command = command.replace("--concurrency 2", "--concurrency 1")
    command = command.replace("--max-tokens 32", "--max-tokens 4")
    gates = "min_requests: 10, window_s: 5, tolerance: 0.1"
    return command.replace(gates, "min_requests: 2, window_s: 0.5, tolerance: 0.9")


@contextmanager
def left_running(command: str, ready: str, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A command in a terminal of its own, once it has said that it is ready."""
    process = subprocess.Popen(
        ["bash", "-c", command if command.startswith("while") else f"exec {command}"],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        if process.stdout is not None:
            assert read_line(process).startswith(ready)
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(WAIT_S)
        if process.stdout is not None:
            process.stdout.close()


def test_the_page_leads_there_and_back(tmp_path: Path) -> None:
    """Copied and pasted, each command ends as the page says, and K = 3 serves in the end."""
    ports = free_ports({"8001": 0, "8101": 0, "8102": 0})
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "trt-mtp"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trt_mtp "$@"\n')
    program.chmod(0o755)
    env = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done, outputs = list[str](), dict[str, str]()
    with ExitStack() as stack:
        for written in commands():
            command = adapted(written, ports)
            ready = next((READY[start] for start in READY if written.startswith(start)), None)
            if ready is not None:
                stack.enter_context(left_running(command, ready, tmp_path, env))
                continue
            ended = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            code = int((re.findall(r"# exit code (\d)", written) or ["0"])[0])
            assert ended.returncode == code, f"{written}: {ended.stdout}{ended.stderr}"
            done.append(written.split("#")[0].strip())
            outputs[done[-1]] = ended.stdout
        traffic = json.loads((tmp_path / "run" / "traffic.json").read_text())
    assert done[-2:] == ["trt-mtp rollout start run/k3.yaml", "trt-mtp rollout status run/k3.yaml"]
    assert outputs[done[-1]] == "back-to-k3: Successful\n"
    assert [name.partition("_")[0] for name in traffic["stable"]["variants"]] == ["k0", "k3"]
    assert (
        f"memory of 127.0.0.1:{ports['8101']}: host " in outputs["trt-mtp rollout plan run/k5.yaml"]
    )
