"""The commands that route requests to variants."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.controller.gateway.access_cli import access_options, read_access
from trt_mtp.errors import InputError

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.process import ProcessConfig


@click.command()
@click.option(
    "--triton",
    required=True,
    multiple=True,
    metavar="HOST:PORT",
    help="Triton's gRPC address; repeat it for several servers, or give one dns:NAME:PORT, "
    "which is every address that the name has.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Calibrated policy file.  [default: published values]",
)
@click.option("--model", default="qwen_mtp", show_default=True, help="The public model's name.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    help="0 takes a free port.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Serve HTTP there as well, with /metrics; 0 takes a free port.  [default: no HTTP]",
)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Serve statistics and draining on 127.0.0.1; with workers, one port for each from here.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share the port and the load.",
)
@click.option(
    "--reuse-port", is_flag=True, help="Share the port with a gateway that is to be replaced."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is learned in this file.",
)
@click.option(
    "--replica",
    metavar="NAME",
    help="This gateway's name in states.  [default: the machine's name and the path of --state]",
)
@click.option(
    "--peer-state",
    "peer_states",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Another gateway's --state, to learn from every minute; repeatable.",
)
@click.option(
    "--decision-log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Log every decision and its outcome, for replay and explain.",
)
@click.option(
    "--traffic",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Obey this file, which rollouts write: who goes to which variants.",
)
@click.option("--log-prompts", is_flag=True, help="Keep prompts in the decision log, both ends.")
@click.option(
    "--max-message-mb",
    type=click.IntRange(1, 2047),
    default=64,
    show_default=True,
    help="Longest request taken.",
)
@click.option(
    "--ready-timeout-s",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    help="How long to wait for a ready variant.",
)
@access_options
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=1024,
    show_default=True,
    help="Requests that may wait while all variants are busy.",
)
@click.option(
    "--stall-factor",
    type=click.FloatRange(1),
    default=20,
    show_default=True,
    help="A variant hangs when a token takes this many times what is expected,",
)
@click.option(
    "--stall-min-s",
    type=click.FloatRange(0.1),
    default=5,
    show_default=True,
    help="and at least this long; the answer then goes on elsewhere.",
)
@click.option(
    "--failover-wait-s",
    type=click.FloatRange(0),
    default=15,
    show_default=True,
    help="How long a broken answer waits for another variant when there is none just then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
def gateway(workers: int, as_json: bool, **options: Any) -> None:
    """Route a public model to the variants that Triton hosts, until Ctrl-C or SIGTERM.

    Clients use the model `qwen_mtp`; each request goes to one of the variants `qwen_mtp_k<draft
    length>`, on any of the servers. When a variant fails in the middle of an answer, another one
    goes on with it. All other models are passed through. Counters are logged once a minute.

    Example: trt-mtp gateway --triton 127.0.0.1:8101 --port 8001
    """
    from trt_mtp.controller.gateway.process import LOG_FORMAT, run_gateway

    config = process_config(**options)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)

    def on_ready(ready: dict[str, Any]) -> None:
        click.echo(json.dumps(ready) if as_json else ready_text(ready))

    if workers > 1:
        from trt_mtp.controller.gateway.workers import run_workers

        run_workers(config, workers, on_ready)
    else:
        run_gateway(config, on_ready)


def process_config(
    *,
    triton: tuple[str, ...],
    profile: Path | None,
    model: str,
    host: str,
    port: int,
    http_port: int | None,
    admin_port: int | None,
    reuse_port: bool,
    state: Path | None,
    replica: str | None,
    peer_states: tuple[Path, ...],
    decision_log: Path | None,
    traffic: Path | None,
    log_prompts: bool,
    max_message_mb: int,
    ready_timeout_s: float,
    max_waiting: int,
    stall_factor: float,
    stall_min_s: float,
    failover_wait_s: float,
    **access: Any,
) -> "ProcessConfig":
    """What the options of `trt-mtp gateway` mean; raises InputError where they don't fit."""
    from trt_mtp.controller.gateway.gateway import GatewayConfig
    from trt_mtp.controller.gateway.process import ProcessConfig
    from trt_mtp.controller.gateway.stall import StallLimits

    if log_prompts and decision_log is None:
        raise InputError("--log-prompts is for the decision log: give --decision-log FILE too")
    if replica is not None and not (replica.isprintable() and 0 < len(replica) <= 256):
        raise InputError(f"--replica is {replica[:80]!r}: expected 1 to 256 printable characters")
    settings = GatewayConfig(
        triton=",".join(triton),
        model=model,
        host=host,
        port=port,
        http_port=http_port,
        admin_port=admin_port,
        is_port_shared=reuse_port,
        ready_timeout_s=ready_timeout_s,
        max_message_bytes=max_message_mb * 1024 * 1024,
        access=read_access(**access),
        max_waiting=max_waiting,
        stall=StallLimits(stall_factor, stall_min_s),
        patience_s=failover_wait_s,
    )
    return ProcessConfig(
        settings,
        profile=profile,
        state=state,
        decision_log=decision_log,
        traffic=traffic,
        log_prompts=log_prompts,
        replica=replica,
        peer_states=peer_states,
    )


def ready_text(ready: dict[str, Any]) -> str:
    """The gateway's ready line for people."""
    names = ", ".join(variant["name"] for variant in ready["variants"])
    http = f", HTTP at {ready['http']}" if ready["http"] else ""
    return f"gateway at {ready['gateway']}{http}: {ready['model']} is {names}; Ctrl-C stops"
