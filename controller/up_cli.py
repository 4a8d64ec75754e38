"""The `up` command."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import click

WATCH_INTERVAL_S = 0.25


STACK_OPTIONS = (
    click.argument("checkpoint", required=False),
    click.option(
        "--draft-lengths", default="0,1,2,3,5", show_default=True, help="Variants to host."
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default="engines",
        show_default=True,
        help="Where the variants are built, or already are.",
    ),
)


def stack_options(command: Callable[..., None]) -> Callable[..., None]:
    """The checkpoint, its variants and where they are: what `up` and `demo` share."""
    for add in reversed(STACK_OPTIONS):
        command = add(command)
    return command


@click.command()
@stack_options
@click.option(
    "--gateway-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="0, the default, takes a free port.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
def up(
    checkpoint: str | None, draft_lengths: str, output: Path, gateway_port: int, as_json: bool
) -> None:
    """Build what is missing, serve it and route to it, until Ctrl-C or SIGTERM.

    CHECKPOINT is a folder or the id of a model in the Hugging Face cache; the default is
    assets/qwen-mtp-tiny of the checkout. One line on stdout says when clients can come and where
    to; the public model is `qwen_mtp`. Everything listens on 127.0.0.1 and is stopped at the end.
    The exit code is 0 after a signal, 130 when that came before the ready line.

    Example: trt-mtp up --draft-lengths 0,1,3 --json
    """
    from trt_mtp.controller.up import default_checkpoint, running
    from trt_mtp.serve.processes import terminate_as_interrupt

    def say(text: str) -> None:
        click.echo(text, err=True)

    is_ready = False
    try:
        with (
            terminate_as_interrupt(),
            running(
                checkpoint or default_checkpoint(), draft_lengths, output, gateway_port, say
            ) as stack,
        ):
            is_ready = True
            names = ", ".join(variant["name"] for variant in stack.ready["variants"])
            click.echo(
                json.dumps(stack.ready)
                if as_json
                else f"gateway at {stack.ready['gateway']} routes qwen_mtp to {names}; Ctrl-C stops"
            )
            while True:
                time.sleep(WATCH_INTERVAL_S)
                stack.check(say)
    except KeyboardInterrupt:
        if not is_ready:
            raise
        say("stopped")
