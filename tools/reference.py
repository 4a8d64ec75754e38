"""What docs/ has from the code: commands, the tensors of requests, and a profile's JSON Schema.

`python -m tools.reference` writes them; tests/test_docs.py holds them against the code.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from tools.json_outputs import FOLDER as SCHEMAS
from tools.json_outputs import SHARED, profile_schema, schema_name
from trt_mtp.cli import EPILOG, GROUPS, cli
from trt_mtp.serve.contract import INPUTS, NEUTRAL, OUTPUTS, VARIANT_ONLY, TensorSpec

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- made by `python -m tools.reference` -->\n"


def commands() -> str:
    """Every command with its help and its options, as Markdown."""
    context = click.Context(cli, info_name="trt-mtp", max_content_width=10_000)
    parts = [NOTE, "# Commands\n\n", f"{EPILOG}\n"]
    for title, names in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for name in names:
            command = cli.get_command(context, name)
            assert command is not None
            parts += _command(command, click.Context(command, context, info_name=name))
    return "".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n### {context.command_path}\n\n    {context.command_path} {usage}\n\n"
    for paragraph in (command.help or "").split("\n\n"):
        text = " ".join(paragraph.split())
        example = re.fullmatch(r"Example: (.*)", text)
        yield f"    {example[1]}\n\n" if example else f"{_escaped(text)}\n\n"
    rows = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        and (record := parameter.get_help_record(context)) is not None
        and "--help" not in parameter.opts
    ]
    if rows:
        yield "| option | |\n| --- | --- |\n"
        # an escaped | in code is shown with its backslash on the site
        yield from (
            f"| `{_cell(name.replace('|', ', '))}` | {_cell(_escaped(text))} |\n"
            for name, text in rows
        )
    if prints_json(command):
        path = context.command_path.removeprefix("trt-mtp ")
        yield f"\nThe schema of its JSON is {_schema_link(path)}"
        tried = f"{path} --dry-run"
        yield f"; with `--dry-run` {_schema_link(tried)}.\n" if tried in SHARED else ".\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, context, info_name=name))


def _schema_link(command: str) -> str:
    name = f"{schema_name(command)}.json"
    return f"[{name}](../schemas/{name})"


def prints_json(command: click.Command) -> bool:
    """Has it the option --json?"""
    return any(parameter.name == "as_json" for parameter in command.params)


def _escaped(text: str) -> str:
    """Text in which Markdown finds no HTML."""
    return text.replace("<", "&lt;")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def requests() -> str:
    """The inputs and outputs of the public model and of its variants, as Markdown."""
    public = [spec for spec in INPUTS if spec.name not in VARIANT_ONLY]
    own = [spec for spec in INPUTS if spec.name in VARIANT_ONLY and spec.name not in NEUTRAL]
    neutral = [spec for spec in INPUTS if spec.name in NEUTRAL]
    answers = [spec for spec in OUTPUTS if spec.name not in VARIANT_ONLY]
    others = [spec for spec in OUTPUTS if spec.name in VARIANT_ONLY]
    parts = [
        NOTE,
        "# Request tensors\n\n",
        "All tensors of the public model and of its variants. What they mean is in "
        "[the gateway](../gateway.md#requests); dimensions leave out the batch, and -1 is any "
        "length.\n",
        "\n## Inputs\n\n",
        *_tensors(public),
        "\nVariants have these as well:\n\n",
        *_tensors(own),
        "\nTensorRT-LLM's `llmapi` model has inputs that a variant takes at the one value which "
        "changes nothing:\n\n",
        *_neutral(neutral, NEUTRAL),
        "\n## Outputs\n\n",
        *_tensors(answers),
        "\nVariants have these as well:\n\n",
        *_tensors(others),
    ]
    return "".join(parts)


def _tensors(specs: Sequence[TensorSpec]) -> Iterator[str]:
    yield "| name | type | dimensions |\n| --- | --- | --- |\n"
    for spec in specs:
        yield f"| `{spec.name}` | {_datatype(spec)} | {list(spec.dims)} |\n"


def _neutral(specs: Sequence[TensorSpec], values: Mapping[str, object]) -> Iterator[str]:
    yield "| name | type | value |\n| --- | --- | --- |\n"
    for spec in specs:
        value = values[spec.name]
        shown = "empty" if value == b"" else str(value).lower()
        yield f"| `{spec.name}` | {_datatype(spec)} | {shown} |\n"


def _datatype(spec: TensorSpec) -> str:
    """As a request over the wire names it, which calls a string BYTES."""
    name = spec.data_type.removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def profile() -> str:
    """The JSON Schema of a profile."""
    return json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"


PAGES = {
    FOLDER / "commands.md": commands,
    FOLDER / "requests.md": requests,
    SCHEMAS / "profile.json": profile,
}


def main() -> None:
    """Write them."""
    for file, page in PAGES.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
