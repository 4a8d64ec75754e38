"""A rollout's file: what is taken, and how what is wrong is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CliResult
from tests.variants import make_variant
from trt_mtp.controller.rollout.spec import Step, read_spec
from trt_mtp.errors import InputError


def value() -> dict[str, Any]:
    """A small rollout."""
    return {
        "schema_version": 1,
        "name": "k5",
        "what": {"variant": "engines/k5", "replaces": "k3"},
        "where": {
            "state": "rollout.db",
            "gateways": [{"traffic": "traffic.json", "decision_log": "decisions.jsonl"}],
            "servers": [{"grpc": "h:8101", "admin_key_file": "key", "repository": "models"}],
        },
    }


def write(folder: Path, content: Any) -> Path:
    """The file of a rollout."""
    file = folder / "k5.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A rollout can be started from any folder."""
    spec = read_spec(write(tmp_path, value()))
    assert spec.what.variant == tmp_path / "engines/k5"
    assert spec.where.state == tmp_path / "rollout.db"
    assert spec.where.servers[0].repository == tmp_path / "models"
    assert spec.where.gateways[0].traffic == tmp_path / "traffic.json"


def test_defaults_go_from_shadow_to_everything(tmp_path: Path) -> None:
    """Without steps, a tenth is copied first, then 1, 5, 25 and 100 % are served."""
    steps = read_spec(write(tmp_path, value())).how.steps
    names = [step.name for step in steps]
    assert names == [
        "shadow 10",
        "set_weight 1",
        "set_weight 5",
        "set_weight 25",
        "set_weight 100",
    ]


def test_what_decides_is_in_the_digest(tmp_path: Path) -> None:
    """Two files that say the same have one digest, and a changed gate another."""
    one = read_spec(write(tmp_path, value()))
    same = read_spec(write(tmp_path, yaml.safe_dump(value()) + "# a comment\n"))
    other = read_spec(write(tmp_path, value() | {"how": {"gates": {"alpha": 0.05}}}))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wat": 1}, r"unknown key wat; did you mean what\?"),
        ({"what": {"variant": "e", "replace": "k3"}}, r"unknown key what.replace; did you mean"),
        ({"what": {"variant": "e"}}, "replaces goes with variant"),
        ({"what": {"variant": "e", "replaces": "k3", "profile": "p"}}, "name one thing"),
        ({"name": "K 5"}, "name is 'K 5'"),
        ({"schema_version": 2}, "schema_version is 2"),
        ({"how": {"gates": {"alpha": 0}}}, "how.gates.alpha is 0"),
        ({"how": {"steps": [{"set_weight": 5, "pause": True}]}}, "a step is one of"),
        ({"how": {"steps": [{"set_weight": 5}, {"set_weight": 1}]}}, "set_weight may only grow"),
        ({"how": {"steps": [{"set_weight": 5}, {"shadow": 1}]}}, "shadow comes before"),
        ({"how": {"steps": [{"shadow": 5, "at_most_s": 1}]}}, "at_most_s is less"),
        ({"what": {"profile": "p"}, "how": {"steps": [{"shadow": 1}]}}, "no answers of its own"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The message has the key, and what was expected."""
    with pytest.raises(InputError, match=message):
        read_spec(write(tmp_path, value() | change))


def test_a_variant_needs_a_server(tmp_path: Path) -> None:
    """Only a profile can be rolled out without one."""
    content = value()
    del content["where"]["servers"]
    with pytest.raises(InputError, match="needs a server"):
        read_spec(write(tmp_path, content))
    profile = content | {"what": {"profile": "p"}, "how": {"steps": [{"set_weight": 100}]}}
    assert read_spec(write(tmp_path, profile)).what.profile == tmp_path / "p"


@pytest.mark.parametrize("content", ["a: [", "just words", "- a\n- list"])
def test_what_is_no_mapping_is_refused(content: str, tmp_path: Path) -> None:
    """YAML that is broken or has another form is one sentence."""
    with pytest.raises(InputError, match=r"neither YAML|not a mapping"):
        read_spec(write(tmp_path, content))


def test_validate_says_so(cli: Callable[..., CliResult], tmp_path: Path) -> None:
    """`rollout validate` ends with 0 for a good file and 2 for others, and touches nothing else."""
    file = write(tmp_path, value())
    missing = cli("rollout", "validate", file)
    assert (missing.code, "engines/k5" in missing.err) == (2, True)
    make_variant(tmp_path / "engines", 5)
    good = cli("rollout", "validate", file, "--json")
    assert (good.code, '"valid": true' in good.out) == (0, True)
    bad = cli("rollout", "validate", write(tmp_path, value() | {"name": ""}))
    assert (bad.code, "name is ''" in bad.err) == (2, True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["engines", "k5.yaml"]


def test_a_rollout_that_never_began_has_no_status(
    cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    """The commands that look say so, and make no state."""
    file = write(tmp_path, value())
    for verb in ("status", "explain", "history"):
        result = cli("rollout", verb, file)
        assert (result.code, "has not begun" in result.err) == (2, True)
    assert not (tmp_path / "rollout.db").exists()


def test_a_step_has_one_name() -> None:
    """The name is that of the file's key."""
    assert [Step(shadow=0.5).name, Step(set_weight=25).name, Step(pause=True).name] == [
        "shadow 0.5",
        "set_weight 25",
        "pause",
    ]
