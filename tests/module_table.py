"""The module table of docs/structures.md, made from the first lines of the modules' docstrings.

`python -m tests.module_table` writes it into the page, which tests/test_docs.py holds against it.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/structures.md"
HEADING = "## Modules\n"
ROOMS = {
    "trt_mtp": "the command",
    "build": "checkpoint → variants",
    "serve": "variants → a running Triton",
    "serve/engine": "the engines behind one interface",
    "serve/model": "the reference the engine is tested against",
    "controller": "decide and learn",
    "controller/gateway": "the door in front of Triton: the way of a request, and the process",
    "controller/gateway/http": "the gateway's HTTP ports",
    "controller/gateway/openai": "OpenAI's API on the public HTTP port",
    "controller/gateway/servers": "the Triton servers behind it, and streams to them",
    "controller/gateway/access": "who may use it, and TLS",
    "controller/gateway/ext_proc": "the picker, which Envoy asks where requests go",
    "controller/gateway/shared": "what gateways share through a Redis",
    "controller/gateway/canary": "what a rollout asks of it",
    "controller/calibrate": "calibrate and bench a deployment",
    "controller/calibrate/openai": "servers that speak OpenAI's API, measured",
    "controller/report": "what was measured, for people",
    "controller/accept": "the first hour on a server, as one record",
    "controller/demo": "the whole chain on one machine, measured",
    "controller/rollout": "something else into production, and back",
    "controller/simulate": "a fleet without servers",
    "controller/plan": "what to deploy at all",
    "tools": "of a checkout only: making the text model",
    "tools/published": "of a checkout only: the simulator's model against what was published",
}


def summary(file: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def table() -> str:
    """All rooms with their modules, as Markdown."""
    parts = [HEADING]
    for room, job in ROOMS.items():
        rows = [f"| `{f.name}` | {summary(f)} |\n" for f in sorted((ROOT / room).glob("*.py"))]
        parts.append(f"\n### {room}/: {job}\n\n| module | job |\n|---|---|\n{''.join(rows)}")
    return "".join(parts)


def main() -> None:
    """Write it."""
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    PAGE.write_text(before + table(), encoding="utf-8")


if __name__ == "__main__":
    main()
