"""The `ask` command: one question, its answer as it comes, and how it was routed."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import to_json
from trt_mtp.options import json_option, model_option, temperature_option
from trt_mtp.printable import printable
from trt_mtp.serve.hosts import require_target
from trt_mtp.terminal import say

if TYPE_CHECKING:
    from trt_mtp.controller.client import TimedAnswer

GATEWAY = "127.0.0.1:8001"


@click.command()
@click.argument("prompt")
@click.option(
    "--url",
    metavar="HOST:PORT",
    default=GATEWAY,
    show_default=True,
    envvar="TRT_MTP_URL",
    show_envvar=True,
    help="gRPC address of a gateway.",
)
@model_option
@click.option("--system", help="System prompt.")
@click.option(
    "--draft-length", metavar="K", help="Draft length to use instead of the gateway's choice."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Maximum output tokens.",
)
@temperature_option
@click.option(
    "--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Random seed."
)
@json_option
def ask(
    prompt: str,
    url: str,
    model: str,
    system: str | None,
    draft_length: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Ask a running gateway one question and show the answer as it comes.

    PROMPT is a user message; - reads it from stdin. After the answer, stderr says which variant
    gave it, why, and how fast.

    Example: trt-mtp ask "Return JSON with the keys name, city: Ada lives in Paris."
    """
    require_target(url, GATEWAY)
    from trt_mtp.controller.client import Prompt, StreamClient

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("PROMPT is empty: expected a question, or - and a question on stdin")
    messages = [{"role": "system", "content": system}] if system is not None else []
    parameters = {"explain": "true"} | ({"draft_length": draft_length} if draft_length else {})
    question = Prompt(
        [*messages, {"role": "user", "content": text}],
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        parameters=parameters,
    )

    def show(piece: str) -> None:
        click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)

    with StreamClient(url) as client:
        if not client.is_reachable():
            raise TrtMtpError(
                f"no gateway answers at {url}; start one with `trt-mtp up --gateway-port 8001`, or "
                "name its gRPC address with --url"
            )
        answer = client.ask(model, question, None if as_json else show)
    if as_json:
        click.echo(to_json({"schema_version": 1, **asdict(answer)}), nl=False)
        return
    click.echo()
    say(summary(answer), err=True)


def summary(answer: "TimedAnswer") -> str:
    """How an answer was given, in one or two lines."""
    count = len(answer.token_ids)
    parts = [f"{count} tokens", f"first after {answer.ttft_s * 1e3:.0f} ms"]
    if count > answer.num_first_tokens:
        parts.append(f"{count / answer.duration_s:.0f} per second in all")
    if answer.num_steps:
        parts.append(f"{1 + sum(answer.accepted_per_position) / answer.num_steps:.2f} per step")
    way = f"{answer.variant}, task {answer.task}: {answer.reasons}" if answer.variant else ""
    return "\n".join(filter(None, [way, ", ".join(parts)]))
