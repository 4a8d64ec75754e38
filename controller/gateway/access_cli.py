"""The options of `trt-mtp gateway` that guard it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.access import AccessConfig

FILE = click.Path(path_type=Path, dir_okay=False)
OPTIONS = (
    click.option("--tls-cert", type=FILE, help="Serve TLS with this certificate chain (PEM)."),
    click.option("--tls-key", type=FILE, help="Its key."),
    click.option("--tls-client-ca", type=FILE, help="Ask clients for certificates that it signed."),
    click.option(
        "--triton-ca", type=FILE, help="Speak TLS to Triton, whose certificate it signed."
    ),
    click.option("--triton-cert", type=FILE, help="Show Triton this certificate chain."),
    click.option("--triton-key", type=FILE, help="Its key."),
    click.option("--tokens", type=FILE, help="Ask for bearer tokens; tenants and their limits."),
    click.option(
        "--max-prompt-tokens",
        type=click.IntRange(1),
        help="Refuse longer prompts; estimated for text.  [default: the variants' limit]",
    ),
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with OPTIONS, whose values `read_access` takes."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def read_access(
    *,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    triton_ca: Path | None,
    triton_cert: Path | None,
    triton_key: Path | None,
    tokens: Path | None,
    max_prompt_tokens: int | None,
) -> "AccessConfig":
    """The settings that the options mean; raises InputError where they don't go together."""
    from trt_mtp.controller.gateway.access import AccessConfig
    from trt_mtp.serve.tls_files import TlsFiles, read_server_files

    towards_triton = TlsFiles(triton_cert, triton_key, triton_ca)
    return AccessConfig(
        tls=read_server_files(tls_cert, tls_key, tls_client_ca),
        triton_tls=None if towards_triton == TlsFiles() else towards_triton,
        tokens=tokens,
        max_prompt_tokens=max_prompt_tokens,
    )
