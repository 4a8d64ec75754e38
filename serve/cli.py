"""The commands that put variants behind Triton."""

import json
import shlex
import time
from pathlib import Path

import click

from trt_mtp.config_file import config_option
from trt_mtp.errors import TrtMtpError
from trt_mtp.files import to_json
from trt_mtp.options import (
    FILE,
    FOLDER,
    PORT,
    json_option,
    ready_json_option,
    tls_options,
    together,
)
from trt_mtp.printable import printable
from trt_mtp.serve.contract import INTERVAL, INTERVAL_MS
from trt_mtp.serve.streaming_interval import MAX_HOLD_MS
from trt_mtp.terminal import fitted

WATCH_INTERVAL_S = 0.25
ENGINES = click.argument("engines", nargs=-1, required=True, type=FOLDER)


def given_interval(tokens: int | None, milliseconds: int | None) -> dict[str, int]:
    """The options --streaming-interval and --streaming-interval-ms, by the names of the inputs."""
    given = {INTERVAL: tokens, INTERVAL_MS: milliseconds}
    return {name: value for name, value in given.items() if value is not None}


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(printable(text), err=True)


interval_options = together(
    click.option(
        "--streaming-interval",
        type=click.IntRange(1),
        metavar="TOKENS",
        help="Tokens per message of a stream whose request doesn't say; the first token always "
        "comes at once.  [default: each step by itself]",
    ),
    click.option(
        "--streaming-interval-ms",
        type=click.IntRange(1, MAX_HOLD_MS),
        metavar="MS",
        help="The same in milliseconds; with both, whichever comes first.",
    ),
)


@click.command()
@ENGINES
@click.option(
    "--repository",
    type=FOLDER,
    help="Directory for the Triton model repository.  [default: a temporary one]",
)
@click.option(
    "--grpc-port",
    type=PORT,
    default=8101,
    show_default=True,
    help="gRPC port; 0 picks a free one.",
)
@click.option("--http-port", type=PORT, help="HTTP port; 0 picks a free one.  [default: no HTTP]")
@click.option(
    "--metrics-port",
    type=PORT,
    default=8102,
    show_default=True,
    help="Prometheus metrics port; 0 picks a free one.",
)
@click.option(
    "--grpc-host",
    default="127.0.0.1",
    show_default=True,
    help="Address that the gRPC port binds to.",
)
@tls_options
@click.option(
    "--admin-key-file",
    type=FILE,
    help="File with the key for Triton's load and unload calls, which rollouts use; created if "
    "missing.",
)
@click.option(
    "--answer-timeout-s",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="Restart Triton if it runs and does not answer for this many seconds.",
)
@click.option(
    "--load-timeout-s",
    type=click.FloatRange(1),
    help="Restart Triton if models are not loaded after this many seconds.  [default: 120; "
    "tensorrt-llm: 3600; vllm: 900]",
)
@interval_options
@config_option
@ready_json_option
def serve(
    engines: tuple[Path, ...],
    repository: Path | None,
    grpc_port: int,
    http_port: int | None,
    metrics_port: int,
    grpc_host: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    admin_key_file: Path | None,
    answer_timeout_s: float,
    load_timeout_s: float | None,
    streaming_interval: int | None,
    streaming_interval_ms: int | None,
    as_json: bool,
) -> None:
    """Serve variants with Triton Inference Server.

    ENGINES are variants, or folders of variants; where a rollout changed what the repository loads,
    that is served. Triton listens on 127.0.0.1, is started again when it dies or hangs, and leaves
    nothing behind. SIGTERM lets answers in flight finish for ten seconds, Ctrl-C for two and a
    half, a second Ctrl-C not at all. --grpc-host opens its gRPC to others, but never its HTTP, its
    metrics, or its management calls, except with the key. $TRITONSERVER names the tritonserver to
    use; without it, a local install or the one in nvidia-pytriton is. The exit code is 0 after a
    signal, 1 if answers were cut, 130 when the signal came before the ready line.

    Example: trt-mtp serve engines/ --grpc-port 8101
    """
    from trt_mtp.serve.grpc_access import GrpcAccess
    from trt_mtp.serve.hosts import bare_host
    from trt_mtp.serve.ports import Ports
    from trt_mtp.serve.processes import terminate_as_interrupt
    from trt_mtp.serve.serving import admin_key_in, describe, limits_for, resolve_variants, serving
    from trt_mtp.serve.tls_files import read_server_files

    key = admin_key_in(admin_key_file) if admin_key_file else ""

    access = GrpcAccess(
        bare_host(grpc_host), read_server_files(tls_cert, tls_key, tls_client_ca), key
    )
    variants = resolve_variants(engines)
    ports = Ports(grpc_port, http_port, metrics_port)
    limits = limits_for(variants, answer_timeout_s, load_timeout_s)
    is_ready = False
    try:
        with (
            terminate_as_interrupt(),
            serving(
                variants,
                repository=repository,
                ports=ports,
                access=access,
                limits=limits,
                interval=given_interval(streaming_interval, streaming_interval_ms),
                on_progress=say,
            ) as server,
        ):
            ready = describe(server, variants)
            is_ready = True
            click.echo(json.dumps(ready) if as_json else fitted(ready_text(ready)))
            while True:
                time.sleep(WATCH_INTERVAL_S)
                server.check(say)
    except KeyboardInterrupt:
        if not is_ready:
            raise
        require_whole_answers(server.was_cut)
        say("stopped")


def require_whole_answers(was_cut: bool) -> None:
    """Raise TrtMtpError when the end of a command cut answers, which is no success."""
    if was_cut:
        raise TrtMtpError("stopped, and cut answers that were still in flight")


def ready_text(ready: dict[str, object]) -> str:
    """The ready line for people."""
    models = ready["models"]
    assert isinstance(models, list)
    return (
        f"serving {', '.join(models)}: gRPC {ready['grpc']}, HTTP {ready['http'] or 'off'}, "
        f"metrics {ready['metrics']}; Ctrl-C stops"
    )


@click.group()
def repo() -> None:
    """Work with Triton model repositories.

    Example: trt-mtp repo render engines/ -o model_repository/
    """


@repo.command()
@ENGINES
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default="model_repository",
    show_default=True,
    help="Directory of the model repository.",
)
@interval_options
@json_option
def render(
    engines: tuple[Path, ...],
    output: Path,
    streaming_interval: int | None,
    streaming_interval_ms: int | None,
    as_json: bool,
) -> None:
    """Write a Triton model repository without starting Triton.

    Models written before and no longer among ENGINES are removed; other files stay.

    Example: trt-mtp repo render engines/k0 engines/k3 -o model_repository/
    """
    from trt_mtp.serve.repository import render_repository
    from trt_mtp.serve.serving import resolve_variants

    interval = given_interval(streaming_interval, streaming_interval_ms)
    models = render_repository(resolve_variants(engines), output, interval=interval)
    command = ["tritonserver", f"--model-repository={output.resolve()}"]
    command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]
    start = shlex.join(command)
    result = {
        "schema_version": 1,
        "repository": str(output.resolve()),
        "models": list(models),
        "start": start,
    }
    text = (
        f"{output}: {', '.join(models)}\n"
        f"start Triton, in an environment whose python3 has trt-mtp, with\n  {start}"
    )
    click.echo(to_json(result) if as_json else text, nl=not as_json)
