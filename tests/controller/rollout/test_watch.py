"""The live screen of `trt-mtp rollout status --watch`, as a terminal gets it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.programs import within
from trt_mtp.controller.rollout.control import Status
from trt_mtp.controller.rollout.spec import parse_spec
from trt_mtp.controller.rollout.store import Event, Phase, Rollout, Store
from trt_mtp.controller.rollout.watch import screen

STEPS = [{"shadow": 10}, {"set_weight": 5}, {"pause": True}, {"set_weight": 100}]
FACTS: dict[str, Any] = {"old": None, "new": None, "stable": {}, "target": {}}
GATE = {
    "gate": "speed",
    "task": "coding",
    "num_canary": 80,
    "num_stable": 900,
    "change": 0.031,
    "unit": "relative",
    "p_value": 0.42,
    "threshold": 0.001,
    "is_failed": False,
    "could_miss": 0.08,
}
PROGRESS = {"step": "set_weight 5", "num_requests": 1234, "gates": [GATE], "memory": []}


def document(folder: Path) -> dict[str, Any]:
    """A rollout's file, of a profile, with its state in `folder`."""
    gateway = {"traffic": str(folder / "t.json"), "decision_log": str(folder / "d.jsonl")}
    return {
        "schema_version": 1,
        "name": "new-profile",
        "what": {"profile": str(folder / "p.json")},
        "where": {"state": str(folder / "r.db"), "gateways": [gateway]},
        "how": {"steps": STEPS[1:]},
    }


def test_a_terminal_shows_the_steps_and_the_gates_until_the_end(tmp_path: Path) -> None:
    """Done, now, to come, and what the gates have seen; the exit code is the rollout's."""
    file = tmp_path / "rollout.yaml"
    file.write_text(json.dumps(document(tmp_path)))
    ours, terminal = pty.openpty()
    with Store(tmp_path / "r.db") as store:
        with store.locked():
            begun = store.begin("new-profile", "d", FACTS)._replace(phase=Phase.RUNNING)
            store.record(begun, "baseline", "do")
            store.record(begun, "baseline", "done")
            store.record(begun, "0 set_weight 5", "do")
            store.save_progress(begun, PROGRESS)
            command = [sys.executable, "-m", "trt_mtp", "rollout", "status", str(file), "--watch"]
            watching = subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE)
            shown = ""
            with within(watching):
                while "may still be missed" not in " ".join(shown.split()):
                    shown += os.read(ours, 4096).decode()
            store.record(begun._replace(phase=Phase.SUCCESSFUL), "rollout", "successful")
        out, _ = watching.communicate(timeout=60)
    os.close(ours)
    os.close(terminal)
    assert watching.returncode == 0
    assert out.decode().startswith("new-profile: Successful")
    first = shown.replace("\r", "").split("\x1b[J")[1].splitlines()
    assert first[0].startswith("new-profile: Running   process ")
    rows = [line.split() for line in first]
    assert ["baseline", "done", "0", "s"] in rows
    assert [row[:4] for row in rows if "now" in row] == [["0", "set_weight", "5", "now"]]
    assert ["1", "pause", "to", "come"] in rows
    assert ["2", "set_weight", "100", "to", "come"] in rows
    assert "set_weight 5: 1,234 requests of the canary" in first


@pytest.mark.parametrize("direction", ["forward", "back"])
@given(
    num_events=st.integers(0, 40),
    num_gates=st.integers(0, 12),
    width=st.integers(20, 200),
    height=st.integers(8, 60),
)
def test_a_screen_fits(
    direction: str, num_events: int, num_gates: int, width: int, height: int
) -> None:
    """However much there is to say, nothing wraps and the first line stays in sight."""
    progress = {**PROGRESS, "gates": [GATE] * num_gates}
    rollout = Rollout(1, "n", "d", Phase.RUNNING, 3, direction, "why " * 40, FACTS, 0.0)
    stages = ("do", "done")
    events = [
        Event(i * 40.0, "me", f"{i // 2} action", stages[i % 2], "", {}) for i in range(num_events)
    ]
    spec = parse_spec(document(Path("/tmp")), Path("/tmp/rollout.yaml"))
    seen = Status(rollout, "process 1", progress)
    lines = screen(seen, events, spec, 99_999.0, width=width, height=height).split("\n")
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("n: Running")
