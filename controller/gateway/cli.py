"""The commands that route requests to variants."""

import json
import os
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.config_file import config_option
from trt_mtp.controller.gateway.access.cli import access_options, read_access
from trt_mtp.controller.gateway.shared.cli import read_shared, shared_options
from trt_mtp.errors import InputError
from trt_mtp.options import (
    FILE,
    PORT,
    SectionedCommand,
    model_option,
    profile_option,
    ready_json_option,
)
from trt_mtp.serve.hosts import bare_host
from trt_mtp.terminal import fitted

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.process import ProcessConfig

SECTIONS = {
    "Servers and model": (
        "--triton",
        "--profile",
        "--model",
        "--model-alias",
        "--zone",
        "--subset-size",
        "--ready-timeout-s",
    ),
    "Ports and processes": (
        "--host",
        "--port",
        "--http-port",
        "--cors-origin",
        "--sse-keep-alive-s",
        "--ext-proc-port",
        "--admin-port",
        "--workers",
        "--reuse-port",
    ),
    "Learning, logs and rollouts": (
        "--state",
        "--replica",
        "--shared",
        "--shared-password-file",
        "--shared-ca",
        "--decision-log",
        "--log-prompts",
        "--traffic",
    ),
    "TLS and tokens": (
        "--tls-cert",
        "--tls-key",
        "--tls-client-ca",
        "--triton-ca",
        "--triton-cert",
        "--triton-key",
        "--tokens",
    ),
    "Limits": (
        "--max-message-mb",
        "--max-prompt-tokens",
        "--max-connections",
        "--max-streams",
        "--max-caller-streams",
        "--idle-timeout-s",
        "--max-waiting",
    ),
    "Failover": ("--stall-factor", "--stall-min-s", "--failover-wait-s"),
}


@click.command(cls=SectionedCommand, sections=SECTIONS)
@click.option(
    "--triton",
    required=True,
    multiple=True,
    metavar="HOST:PORT",
    help="gRPC address of a Triton server. Repeat for several, or use dns:NAME:PORT for every "
    "address of a DNS name, or kubernetes:NAMESPACE/SERVICE for every ready endpoint of a "
    "Service.",
)
@profile_option
@model_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=lambda context, option, host: bare_host(host),
    help="Address that the gRPC and HTTP ports bind to.",
)
@click.option(
    "--port",
    type=PORT,
    default=8001,
    show_default=True,
    help="gRPC port for clients; 0 picks a free one.",
)
@click.option(
    "--http-port",
    type=PORT,
    help="Also serve HTTP (OpenAI's API, generate, health, /metrics) on this port; 0 picks a "
    "free one.  [default: no HTTP]",
)
@click.option(
    "--model-alias",
    "model_aliases",
    multiple=True,
    metavar="NAME",
    help="Additional model name for OpenAI clients; repeatable.",
)
@click.option(
    "--cors-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Web origin allowed to use OpenAI's API, or * for any; repeatable.  [default: none]",
)
@click.option(
    "--sse-keep-alive-s",
    "keep_alive_s",
    type=click.FloatRange(0.1),
    default=10,
    show_default=True,
    help="Send an empty chunk on an idle OpenAI stream after this many seconds.",
)
@click.option(
    "--admin-port",
    type=PORT,
    help="Admin HTTP port on 127.0.0.1 (statistics, drain). With --workers N, ports PORT to "
    "PORT+N-1.",
)
@click.option(
    "--ext-proc-port",
    type=PORT,
    help="Port of the picker for Envoy's ext_proc filter, without TLS; 0 picks a free one.  "
    "[default: no picker]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Number of gateway processes that share the port.",
)
@click.option(
    "--reuse-port",
    "is_port_shared",
    is_flag=True,
    help="Bind with SO_REUSEPORT, so that a new gateway can take over without downtime.",
)
@click.option(
    "--state",
    type=FILE,
    help="File that keeps what the gateway learns across restarts.",
)
@click.option(
    "--replica",
    metavar="NAME",
    help="Name of this gateway in state files and among those that share.  [default: the "
    "machine's name and the path of --state, or the process's number]",
)
@shared_options
@click.option(
    "--decision-log",
    type=FILE,
    help="Append every routing decision and its outcome (JSON lines), for `replay` and `explain`.",
)
@click.option(
    "--traffic",
    type=FILE,
    help="Traffic split written by `trt-mtp rollout`; read again when it changes.",
)
@click.option("--log-prompts", is_flag=True, help="Also log the start and end of each prompt.")
@click.option(
    "--max-message-mb",
    type=click.IntRange(1, 2047),
    default=4,
    show_default=True,
    help="Reject larger requests, in MB.",
)
@click.option(
    "--ready-timeout-s",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    help="Give up if no variant is ready after this many seconds.",
)
@access_options
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=1024,
    show_default=True,
    help="Maximum queue length while all variants are busy; further requests are refused.",
)
@click.option(
    "--stall-factor",
    type=click.FloatRange(1),
    default=20,
    show_default=True,
    help="Treat a variant as stalled if a token takes this many times longer than expected.",
)
@click.option(
    "--stall-min-s",
    type=click.FloatRange(0.1),
    default=5,
    show_default=True,
    help="Minimum stall time in seconds; the answer then continues on another variant.",
)
@click.option(
    "--failover-wait-s",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="How long requests wait for a variant if none is ready, in seconds.",
)
@click.option(
    "--zone",
    default="",
    metavar="NAME",
    help="Zone of this gateway; servers in the same zone are preferred.",
)
@click.option(
    "--subset-size",
    type=click.IntRange(1),
    help="Number of servers per variant that this gateway prefers, for fleets of many gateways. "
    " [default: all]",
)
@config_option
@ready_json_option
def gateway(workers: int, as_json: bool, **options: Any) -> None:
    """Send each request to the variant expected to finish it first.

    Clients use the model `qwen_mtp`; each request goes to one of the variants `qwen_mtp_k<draft
    length>`, on any of the servers. When a variant fails in the middle of an answer, another one
    goes on with it. All other models are passed through. Counters
    are logged at the end, if stderr is not a terminal.

    Example: trt-mtp gateway --triton 127.0.0.1:8101 --port 8001
    """
    # before gRPC comes: its core says a line of every broken frame, which anybody can send
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from trt_mtp.controller.gateway.log_lines import begin_log
    from trt_mtp.controller.gateway.process import run_gateway

    if options["ext_proc_port"] is not None:
        check_picker(workers, options)
    config = process_config(options)
    begin_log()

    def on_ready(ready: dict[str, Any]) -> None:
        click.echo(json.dumps(ready) if as_json else fitted(ready_text(ready)))

    if workers > 1:
        from trt_mtp.controller.gateway.workers import run_workers

        run_workers(config, workers, on_ready)
    else:
        run_gateway(config, on_ready)


def check_picker(workers: int, options: dict[str, Any]) -> None:
    """Raise InputError for options that don't fit --ext-proc-port."""
    from trt_mtp.controller.gateway.ext_proc.server import check_addresses

    for option, is_given in (("--workers", workers > 1), ("--tokens", options["tokens"])):
        if is_given:
            raise InputError(f"--ext-proc-port doesn't go with {option}: leave one of them out")
    check_addresses(",".join(options["triton"]))


def process_config(options: dict[str, Any]) -> "ProcessConfig":
    """What the options of `trt-mtp gateway` mean; raises InputError where they don't fit.

    Those that are not looked at here are fields of GatewayConfig or of ProcessConfig.
    """
    from trt_mtp.controller.gateway.gateway import GatewayConfig
    from trt_mtp.controller.gateway.hang_detector import StallLimits
    from trt_mtp.controller.gateway.openai.options import OpenAiOptions
    from trt_mtp.controller.gateway.process import ProcessConfig

    replica = options["replica"]
    if options["log_prompts"] and options["decision_log"] is None:
        raise InputError("--log-prompts is for the decision log: give --decision-log FILE too")
    if replica is not None and not (replica.isprintable() and 0 < len(replica) <= 256):
        raise InputError(f"--replica is {replica[:80]!r}: expected 1 to 256 printable characters")
    take = options.pop
    shared = read_shared(options)
    process = {
        name: take(name)
        for name in (
            "profile", "state", "decision_log", "log_prompts", "replica", "traffic"
        )
    }  # fmt: skip
    settings = GatewayConfig(
        triton=",".join(take("triton")),
        max_message_bytes=take("max_message_mb") * 1024 * 1024,
        access=read_access(options),
        openai=OpenAiOptions(take("model_aliases"), take("origins"), take("keep_alive_s")),
        stall=StallLimits(take("stall_factor"), take("stall_min_s")),
        **options,
    )
    return ProcessConfig(settings, shared=shared, **process)


def ready_text(ready: dict[str, Any]) -> str:
    """The gateway's ready line for people."""
    names = ", ".join(variant["name"] for variant in ready["variants"])
    http = f", HTTP at {ready['http']}" if ready["http"] else ""
    return f"gateway at {ready['gateway']}{http}: {ready['model']} is {names}; Ctrl-C stops"
