"""Options that several commands have, so that they are called and explained alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
PORT = click.IntRange(0, 65535)  # 0 takes a free one


def together(*options: Option) -> Option:
    """A decorator that adds `options` in their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def parsed(parse: Callable[[str, str], Any]) -> Callable[..., Any]:
    """A click callback: the result of `parse(option, text)`; None for an option not given."""

    def callback(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        return None if text is None else parse(parameter.opts[0], text)

    return callback


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ready_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON when ready."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "cpu", "tensorrt-llm", "vllm"]),
    default="auto",
    show_default=True,
    help="auto: tensorrt-llm where it is installed beside a GPU, else cpu.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random choice."
)
model_option = click.option(
    "--model", default="qwen_mtp", show_default=True, help="The public model's name."
)
profile_option = click.option(
    "--profile", type=FILE, help="Calibrated policy file.  [default: published values]"
)
# what `read_server_files` of trt_mtp.serve.tls_files takes
tls_options = together(
    click.option("--tls-cert", type=FILE, help="Speak TLS with this certificate chain (PEM)."),
    click.option("--tls-key", type=FILE, help="Its key."),
    click.option("--tls-client-ca", type=FILE, help="Ask clients for certificates that it signed."),
)
