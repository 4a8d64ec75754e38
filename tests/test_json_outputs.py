"""The published JSON Schemas: one for every command with --json, and each of them a schema."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.json_outputs import check_output
from tools.json_outputs import FOLDER, schema_name
from tools.reference import prints_json
from trt_mtp.cli import cli as root
from trt_mtp.controller.profile import Profile, profile_json


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[str]:
    """The commands with --json, such as `rollout plan`."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if prints_json(command):
            yield f"{path} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{path} {name}".strip())


def test_every_command_with_json_has_a_schema_and_no_schema_is_left_over() -> None:
    """A new command is described before it is published."""
    assert isinstance(root, click.Group)
    needed = {schema_name(name) for name in commands(root, click.Context(root), "")}
    assert {file.stem for file in FOLDER.glob("*.json")} == needed


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_schema_is_a_schema(file: Path) -> None:
    """Validators of others can use it."""
    schema = json.loads(file.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["title"]


def test_what_is_not_described_is_found() -> None:
    """The check that all tests run with refuses a missing key, a wrong type and a new key."""
    check_output("profile show", profile_json(Profile()))
    good = {"schema_version": 1, "findings": ["x"]}
    check_output("profile check", json.dumps(good))
    wrong = ({"schema_version": 1}, good | {"findings": [1]}, good | {"new": 1})
    for value in wrong:
        with pytest.raises(ValidationError):
            check_output("profile check", json.dumps(value))
