"""The `up` command."""

import json
import time
from pathlib import Path
from typing import Any

import click

from trt_mtp.build.vllm_cli import vllm_python_option
from trt_mtp.controller.ask_cli import GATEWAY
from trt_mtp.options import PORT, engine_option, ready_json_option, together
from trt_mtp.terminal import fitted

WATCH_INTERVAL_S = 0.25


# the checkpoint, its variants and where they are: what `up` and `demo` share
stack_options = together(
    click.argument("checkpoint", required=False),
    click.option(
        "--draft-lengths",
        default="0,1,2,3,5",
        show_default=True,
        help="Draft lengths (K) to host, comma-separated; 0 is no speculation.",
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default="engines",
        show_default=True,
        help="Directory of the variants; missing ones are built there.",
    ),
)


@click.command()
@stack_options
@engine_option
@vllm_python_option
@click.option(
    "--gateway-port",
    type=PORT,
    default=0,
    help="gRPC port; 0 picks a free one.",
)
@click.option(
    "--http-port",
    type=PORT,
    help="Also serve HTTP with OpenAI's API on this port; 0 picks a free one.  [default: no HTTP]",
)
@click.option(
    "--admin-port",
    type=PORT,
    help="Also serve the gateway's statistics on this port, for `trt-mtp top`.  [default: none]",
)
@ready_json_option
def up(
    checkpoint: str | None,
    draft_lengths: str,
    output: Path,
    engine: str,
    vllm_python: Path | None,
    gateway_port: int,
    http_port: int | None,
    admin_port: int | None,
    as_json: bool,
) -> None:
    """Build, serve and route in one foreground process, for local use.

    CHECKPOINT is a folder or the id of a model in the Hugging Face cache; the default is
    assets/qwen-mtp-tiny of the checkout. One line on stdout says when clients can come and where
    to; the public model is `qwen_mtp`. Everything listens on 127.0.0.1 and is stopped at the end.
    The exit code is 0 after a signal, 1 if answers were cut, 130 when the signal came before the
    ready line.

    Example: trt-mtp up --draft-lengths 0,1,3 --json
    """
    from trt_mtp.controller.up import GatewayPorts, default_checkpoint, running
    from trt_mtp.serve.cli import require_whole_answers
    from trt_mtp.serve.processes import terminate_as_interrupt

    def say(text: str) -> None:
        click.echo(text, err=True)

    is_ready = False
    try:
        with (
            terminate_as_interrupt(),
            running(
                checkpoint or default_checkpoint(),
                draft_lengths,
                output,
                GatewayPorts(gateway_port, http_port, admin_port),
                say,
                engine,
                vllm_python,
            ) as stack,
        ):
            is_ready = True
            click.echo(json.dumps(stack.ready) if as_json else fitted(ready_text(stack.ready)))
            while True:
                time.sleep(WATCH_INTERVAL_S)
                stack.check(say)
    except KeyboardInterrupt:
        if not is_ready:
            raise
        require_whole_answers(stack.server.was_cut or stack.gateway.returncode != 0)
        say("stopped")


def ready_text(ready: dict[str, Any]) -> str:
    """The ready line for people."""
    names = ", ".join(variant["name"] for variant in ready["variants"])
    http = f", OpenAI's API at {ready['openai']}" if ready["openai"] else ""
    # whole in 80 columns, or folded where a shell takes it as one command
    url = "" if ready["gateway"] == GATEWAY else f" --url {ready['gateway']} \\\n "
    watch = f"Watch: trt-mtp top --admin {ready['admin']}\n" if ready["admin"] else ""
    return (
        f"gateway at {ready['gateway']}{http}, Triton at {ready['triton']['grpc']}; "
        f"qwen_mtp is {names}\n"
        f'Try: trt-mtp ask{url} "Return JSON with the keys name, city: Ada lives in Paris."\n'
        f"{watch}"
        "Ctrl-C stops"
    )
