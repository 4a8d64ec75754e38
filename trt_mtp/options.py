"""Options that several commands have, so that they are called and explained alike."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Port(click.IntRange):
    """A TCP port; 0 takes a free one."""

    name = "port"

    def __init__(self) -> None:
        super().__init__(0, 65535)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; says where an address comes from that Kubernetes put into a variable."""
        if isinstance(value, str) and value.startswith("tcp://"):
            self.fail(
                f"{value!r} is the address that Kubernetes gives pods of a Service of that name; "
                "set enableServiceLinks: false in the pod, or give the option",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


PORT = Port()


def together(*options: Option) -> Option:
    """A decorator that adds `options` in their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings.

    `sections` maps a heading to options such as --port; what it doesn't name is under Options.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every option once, under its heading."""
        headings = {name: title for title, names in self.sections.items() for name in names}
        lines: dict[str, list[tuple[str, str]]] = {title: [] for title in self.sections}
        lines["Options"] = []
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and line is not None:
                lines[headings.get(parameter.opts[-1], "Options")].append(line)
        for title, rows in lines.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def parsed(parse: Callable[[str, str], Any]) -> Callable[..., Any]:
    """A click callback: the result of `parse(option, text)`; None for an option not given."""

    def callback(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        return None if text is None else parse(parameter.opts[0], text)

    return callback


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
wide_option = click.option(
    "--wide", is_flag=True, help="Print every column, in lines of more than 80 characters."
)
ready_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON when ready."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "cpu", "tensorrt-llm", "vllm"]),
    default="auto",
    show_default=True,
    help="auto: tensorrt-llm if it is installed and a GPU is present, else cpu.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed."
)
temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 is greedy.",
)
model_option = click.option(
    "--model", default="qwen_mtp", show_default=True, help="Model name that clients use."
)
profile_option = click.option(
    "--profile",
    type=FILE,
    help="Profile from `trt-mtp calibrate`.  [default: values from published measurements]",
)


def profile_out(help_text: str, **more: Any) -> Option:
    """The option -o of a command whose result is a profile; `more` is for click.option."""
    return click.option("-o", "--out", "--output", "out", type=FILE, help=help_text, **more)


# what `read_server_files` of trt_mtp.serve.tls_files takes
tls_options = together(
    click.option("--tls-cert", type=FILE, help="Serve TLS with this certificate chain (PEM)."),
    click.option("--tls-key", type=FILE, help="Private key of the certificate above (PEM)."),
    click.option(
        "--tls-client-ca",
        type=FILE,
        help="Require client certificates signed by this CA (mutual TLS).",
    ),
)
