"""Which JSON Schema of docs/schemas describes what a command prints with --json."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
SHARED = {  # command: whose output it prints
    "calibrate": "profile",
    "profile show": "profile",
    "simulate regret": "regret",
    "top": "statistics",
    "rollout start --dry-run": "rollout-plan",
    **dict.fromkeys(
        (f"rollout {verb}" for verb in ("start", "resume", "pause", "promote", "abort", "explain")),
        "rollout-status",
    ),
}


def schema_name(command: str) -> str:
    """The schema of a command such as `rollout plan`, or `rollout start --dry-run`."""
    return SHARED.get(command, command.replace(" ", "-"))


def schema_of(command: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a command; raises OSError if there is none."""
    value: dict[str, Any] = json.loads((FOLDER / f"{schema_name(command)}.json").read_text())
    return value


def profile_schema() -> dict[str, Any]:
    """The schema of a profile, from the class that reads it; cells are a table in the file."""
    from trt_mtp.controller.profile import Profile

    schema = Profile.model_json_schema(mode="serialization")
    # step_ratio is left out where acceptance was not told
    schema["required"] = [name for name in schema["properties"] if name != "step_ratio"]
    calibration = schema["$defs"]["Calibration"]
    columns = list(schema["$defs"].pop("Cell")["properties"])
    table = {"columns": {"const": columns}, "rows": {"type": "array", "items": {"type": "array"}}}
    calibration["properties"]["cells"] = {
        "type": "object",
        "description": "The measurements, a row per task, draft length and concurrency.",
        "properties": table,
        "required": list(table),
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_untitled(schema),
        "title": "A profile: trt-mtp calibrate --json",
    }


def _untitled(value: Any) -> Any:
    """Without the titles that only repeat a key's name."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key != "title" or isinstance(item, dict)}
    return {key: _untitled(item) for key, item in kept.items()}
