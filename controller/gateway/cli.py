"""The commands that route requests to variants."""

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.controller.gateway.access.cli import access_options, read_access
from trt_mtp.errors import InputError
from trt_mtp.options import FILE, PORT, model_option, profile_option, ready_json_option
from trt_mtp.serve.hosts import bare_host

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.process import ProcessConfig


@click.command()
@click.option(
    "--triton",
    required=True,
    multiple=True,
    metavar="HOST:PORT",
    help="Triton's gRPC address; repeat it for several servers, or give one dns:NAME:PORT, "
    "which is every address that the name has, or kubernetes:NAMESPACE/SERVICE, which is every "
    "ready endpoint of a Service.",
)
@profile_option
@model_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=lambda context, option, host: bare_host(host),
)
@click.option(
    "--port",
    type=PORT,
    default=8001,
    show_default=True,
    help="0 takes a free port.",
)
@click.option(
    "--http-port",
    type=PORT,
    help="Serve HTTP there as well, with /metrics; 0 takes a free port.  [default: no HTTP]",
)
@click.option(
    "--model-alias",
    "model_aliases",
    multiple=True,
    metavar="NAME",
    help="Another name of the public model for OpenAI's clients; repeatable.",
)
@click.option(
    "--cors-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's origin that may use OpenAI's API, or * for any; repeatable.  "
    "[default: none]",
)
@click.option(
    "--sse-keep-alive-s",
    "keep_alive_s",
    type=click.FloatRange(0.1),
    default=10,
    show_default=True,
    help="Send an empty chunk on OpenAI's streams when nothing was sent for so long.",
)
@click.option(
    "--admin-port",
    type=PORT,
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
    "--reuse-port",
    "is_port_shared",
    is_flag=True,
    help="Share the port with a gateway that is to be replaced.",
)
@click.option(
    "--state",
    type=FILE,
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
    type=FILE,
    multiple=True,
    help="Another gateway's --state, to learn from every minute; repeatable.",
)
@click.option(
    "--decision-log",
    type=FILE,
    help="Log every decision and its outcome, for replay and explain.",
)
@click.option(
    "--traffic",
    type=FILE,
    help="Obey this file, which rollouts write: who goes to which variants.",
)
@click.option("--log-prompts", is_flag=True, help="Keep prompts in the decision log, both ends.")
@click.option(
    "--max-message-mb",
    type=click.IntRange(1, 2047),
    default=16,
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
    default=30,
    show_default=True,
    help="How long requests wait for a ready variant while there is none.",
)
@click.option(
    "--zone",
    default="",
    metavar="NAME",
    help="The zone that this gateway is in: servers there are used first (Kubernetes says theirs).",
)
@click.option(
    "--subset-size",
    type=click.IntRange(1),
    help="Servers of each variant that this gateway uses while they have room, where there are "
    "many gateways; they differ by the machine's name.  [default: all]",
)
@ready_json_option
def gateway(workers: int, as_json: bool, **options: Any) -> None:
    """Route a public model to the variants that Triton hosts, until Ctrl-C or SIGTERM.

    Clients use the model `qwen_mtp`; each request goes to one of the variants `qwen_mtp_k<draft
    length>`, on any of the servers. When a variant fails in the middle of an answer, another one
    goes on with it. All other models are passed through. Counters are logged once a minute.

    Example: trt-mtp gateway --triton 127.0.0.1:8101 --port 8001
    """
    # before gRPC comes: its core says a line of every broken frame, which anybody can send
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from trt_mtp.controller.gateway.process import LOG_FORMAT, run_gateway

    config = process_config(options)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)

    def on_ready(ready: dict[str, Any]) -> None:
        click.echo(json.dumps(ready) if as_json else ready_text(ready))

    if workers > 1:
        from trt_mtp.controller.gateway.workers import run_workers

        run_workers(config, workers, on_ready)
    else:
        run_gateway(config, on_ready)


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
    process = {
        name: take(name)
        for name in (
            "profile", "state", "decision_log", "log_prompts", "replica", "peer_states", "traffic"
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
    return ProcessConfig(settings, **process)


def ready_text(ready: dict[str, Any]) -> str:
    """The gateway's ready line for people."""
    names = ", ".join(variant["name"] for variant in ready["variants"])
    http = f", HTTP at {ready['http']}" if ready["http"] else ""
    return f"gateway at {ready['gateway']}{http}: {ready['model']} is {names}; Ctrl-C stops"
