"""The options of `trt-mtp gateway` that guard it."""

import os
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE, tls_options, together

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.access.config import AccessConfig

# what `read_access` takes
access_options = together(
    tls_options,
    click.option(
        "--triton-ca", type=FILE, help="Connect to Triton over TLS and verify it with this CA."
    ),
    click.option("--triton-cert", type=FILE, help="Client certificate chain presented to Triton."),
    click.option("--triton-key", type=FILE, help="Private key of the certificate above (PEM)."),
    click.option(
        "--tokens", type=FILE, help="Require bearer tokens: YAML file of tenants and their limits."
    ),
    click.option(
        "--max-prompt-tokens",
        type=click.IntRange(1),
        help="Reject longer prompts (token counts of text are estimated).  [default: the "
        "variants' limit]",
    ),
    click.option(
        "--max-connections",
        type=click.IntRange(1),
        help="Maximum client connections per port; more are closed at once.  [default: half of "
        "what `ulimit -Hn` leaves]",
    ),
    click.option(
        "--max-streams",
        type=click.IntRange(1),
        default=4096,
        show_default=True,
        help="Maximum concurrent calls per gRPC connection, where further ones wait; and, streams "
        "aside, per tenant or client address.",
    ),
    click.option(
        "--max-caller-streams",
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        help="Maximum open streams per tenant, or per client address without tokens.",
    ),
    click.option(
        "--idle-timeout-s",
        type=click.FloatRange(1),
        default=300,
        show_default=True,
        help="Close a connection, or a stream, without a request after this many seconds.",
    ),
)


# without their files the gateway would be open, or believe anybody
GUARDS = tuple(
    f"TRT_MTP_GATEWAY_{name}" for name in ("TOKENS", "TLS_CERT", "TLS_CLIENT_CA", "TRITON_CA")
)


def read_access(options: dict[str, Any]) -> "AccessConfig":
    """The settings that the options mean, taken out of `options`.

    Raises InputError where they don't go together.
    """
    from trt_mtp.controller.gateway.access.config import (
        AccessConfig,
        ConnectionLimits,
        checked_connections,
        raise_file_limit,
    )
    from trt_mtp.serve.tls_files import TlsFiles, read_server_files

    for name in GUARDS:
        if os.environ.get(name) == "":  # which click takes for one that is not set
            raise InputError(f"{name} is set and empty: give it a file, or unset it")
    raise_file_limit()
    take = options.pop
    towards_triton = TlsFiles(take("triton_cert"), take("triton_key"), take("triton_ca"))
    return AccessConfig(
        tls=read_server_files(take("tls_cert"), take("tls_key"), take("tls_client_ca")),
        triton_tls=None if towards_triton == TlsFiles() else towards_triton,
        tokens=take("tokens"),
        max_prompt_tokens=take("max_prompt_tokens"),
        connections=ConnectionLimits(
            max_connections=checked_connections(take("max_connections")),
            max_streams=take("max_streams"),
            max_caller_streams=take("max_caller_streams"),
            idle_s=take("idle_timeout_s"),
        ),
    )
