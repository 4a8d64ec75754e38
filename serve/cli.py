"""The commands that put variants behind Triton."""

import json
import time
from pathlib import Path

import click

from trt_mtp.files import to_json

WATCH_INTERVAL_S = 0.25
PORT = click.IntRange(0, 65535)
FILE = click.Path(path_type=Path, dir_okay=False)
ENGINES = click.argument(
    "engines", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)


@click.command()
@ENGINES
@click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write the Triton model repository.  [default: a temporary folder]",
)
@click.option("--grpc-port", type=PORT, default=0, help="0, the default, takes a free port.")
@click.option("--http-port", type=PORT, default=0, help="The same for HTTP.")
@click.option("--metrics-port", type=PORT, default=0, help="The same for the metrics.")
@click.option("--grpc-host", default="127.0.0.1", show_default=True, help="Listen there for gRPC.")
@click.option("--tls-cert", type=FILE, help="Speak TLS on gRPC with this certificate chain (PEM).")
@click.option("--tls-key", type=FILE, help="Its key.")
@click.option("--tls-client-ca", type=FILE, help="Ask clients for certificates that it signed.")
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key of the management calls, for rollouts; made when it is not there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
def serve(
    engines: tuple[Path, ...],
    repository: Path | None,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    grpc_host: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    admin_key_file: Path | None,
    as_json: bool,
) -> None:
    """Serve variants with Triton until Ctrl-C or SIGTERM.

    ENGINES are variants, or folders of variants; where a rollout changed what the repository loads,
    that is served. Triton listens on 127.0.0.1, is started again when it dies, and leaves nothing
    behind. --grpc-host opens its gRPC to others, but never its HTTP, its metrics, or its management
    calls, except with the key. $TRITONSERVER names the tritonserver to use; without
    it, a local install or the one in nvidia-pytriton is. The exit code is 0 after a signal, 130
    when that came before the ready line.

    Example: trt-mtp serve engines/ --grpc-port 8001
    """
    from trt_mtp.serve.processes import terminate_as_interrupt
    from trt_mtp.serve.serving import admin_key_in, describe, resolve_variants, serving
    from trt_mtp.serve.tls_files import read_server_files
    from trt_mtp.serve.triton import GrpcAccess, Ports

    key = admin_key_in(admin_key_file) if admin_key_file else ""

    access = GrpcAccess(grpc_host, read_server_files(tls_cert, tls_key, tls_client_ca), key)
    variants = resolve_variants(engines)
    ports = Ports(grpc_port, http_port, metrics_port)
    is_ready = False
    try:
        with (
            terminate_as_interrupt(),
            serving(
                variants, repository=repository, ports=ports, access=access, on_progress=say
            ) as server,
        ):
            ready = describe(server, variants)
            is_ready = True
            click.echo(json.dumps(ready) if as_json else ready_text(ready))
            while True:
                time.sleep(WATCH_INTERVAL_S)
                server.check(say)
    except KeyboardInterrupt:
        if not is_ready:
            raise
        say("stopped")


def ready_text(ready: dict[str, object]) -> str:
    """The ready line for people."""
    models = ready["models"]
    assert isinstance(models, list)
    return (
        f"serving {', '.join(models)}: gRPC {ready['grpc']}, HTTP {ready['http']}, "
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
    type=click.Path(path_type=Path, file_okay=False),
    default="model_repository",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def render(engines: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Write a Triton model repository without starting Triton.

    Models written before and no longer among ENGINES are removed; other files stay.

    Example: trt-mtp repo render engines/k0 engines/k3 -o model_repository/
    """
    from trt_mtp.serve.repository import render_repository
    from trt_mtp.serve.serving import resolve_variants

    models = render_repository(resolve_variants(engines), output)
    start = f"tritonserver --model-repository={output.resolve()} --model-control-mode=explicit"
    start += "".join(f" --load-model={name}" for name in models)
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
