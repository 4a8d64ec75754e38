"""What is refused before a rollout begins leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult

Cli = Callable[..., CliResult]


@pytest.fixture
def rollout(tmp_path: Path) -> Path:
    """The file of a rollout whose profile is missing."""
    file = tmp_path / "rollout.yaml"
    gateway = {"traffic": "run/t.json", "decision_log": "run/d.jsonl"}
    document = {
        "schema_version": 1,
        "name": "new-profile",
        "what": {"profile": "p.json"},
        "where": {"state": "run/r.db", "gateways": [gateway]},
        "how": {"steps": [{"set_weight": 5}, {"set_weight": 100}]},
    }
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("start", "p.json"),
        ("promote", "has not begun"),
        ("abort", "has not begun"),
        ("resume", "has not begun"),
        ("explain", "start it with `trt-mtp rollout start`"),
    ],
)
def test_no_state_is_left(rollout: Path, cli: Cli, command: str, says: str) -> None:
    """No state file, and no folder for one."""
    result = cli("rollout", command, rollout)
    assert (result.code, says in result.err) == (2, True)
    assert [path.name for path in rollout.parent.iterdir()] == ["rollout.yaml"]
