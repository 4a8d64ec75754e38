"""What commands print with --json, held against the published schemas wherever a test sees it."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import click
from jsonschema import Draft202012Validator

from tools.json_outputs import SHARED, schema_of


def check_output(command: str, text: str) -> None:
    """One JSON value, or one per line; raises jsonschema.ValidationError, ValueError for others.

    Keys that the schema doesn't name are refused here, so that a new one gets described.
    """
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    for value in values:
        _validator(command).validate(value)


@cache
def _validator(command: str) -> Draft202012Validator:
    return Draft202012Validator(closed(schema_of(command)))


def closed(schema: Any) -> Any:
    """The same schema for a writer: objects have the keys that are described, and no others."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    value = {key: closed(item) for key, item in schema.items()}
    if isinstance(value.get("properties"), dict) and "type" in value:
        value.setdefault("additionalProperties", False)
    return value


def _prints_json(context: click.Context) -> bool:
    """Is it one of trt-mtp's commands, with --json?"""
    module = getattr(context.command.callback, "__module__", "")
    return module.startswith("trt_mtp.") and bool(context.params.get("as_json"))


def checking(echo: Callable[..., None]) -> Callable[..., None]:
    """`click.echo` that checks what a command prints with --json."""

    def checked(message: Any = None, *args: Any, **options: Any) -> None:
        context = click.get_current_context(silent=True)
        if context is not None and not options.get("err") and _prints_json(context):
            path = context.command_path.removeprefix("trt-mtp ")
            tried = f"{path} --dry-run"
            is_tried = context.params.get("dry_run") and tried in SHARED
            check_output(tried if is_tried else path, str(message))
        echo(message, *args, **options)

    return checked
