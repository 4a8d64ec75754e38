"""Who may use the gateway: the settings that guard its ports and its connections to Triton."""

import resource
from dataclasses import dataclass, field
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.serve.tls_files import TlsFiles

MAX_FILES = 1 << 20
OWN_FILES = 200  # that a gateway needs beside its clients' connections
MIN_CONNECTIONS = 64


def raise_file_limit() -> None:
    """Let this process, and those that it starts, open as many files as they may ask for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def affordable_connections() -> int:
    """Connections of each port for which this process may open files, half of them for each."""
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((num_files - OWN_FILES) // 2, MIN_CONNECTIONS)


def checked_connections(wanted: int | None) -> int:
    """Connections of each port, `wanted` or as many as there may be files for.

    Raises InputError for too many: what is accepted when no file can be opened any more makes
    asyncio's accepting go round in circles, and nobody is answered.
    """
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OWN_FILES + 2 * (wanted or MIN_CONNECTIONS)
    if num_files < needed:
        instead = ", or --max-connections lower" if wanted else ""
        raise InputError(
            f"a process may open {num_files} files at once here; set that limit (ulimit -n) to "
            f"{needed} or more{instead}"
        )
    return wanted or affordable_connections()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may hold before anything is known of them."""

    max_connections: int = field(default_factory=affordable_connections)  # of each port
    max_streams: int = 4_096  # calls at once on one gRPC connection
    max_caller_streams: int = 1_024  # open ModelStreamInfer calls of one caller
    idle_s: float = 300.0  # without a request; then the connection, or the stream, is closed
    handshake_s: float = 20.0  # for a connection's first bytes, and for a request's headers


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """What is None is not asked for: no TLS, no tokens, no limit."""

    tls: TlsFiles | None = None  # of the public ports; with a CA, clients need a certificate
    triton_tls: TlsFiles | None = None  # of connections to Triton
    tokens: Path | None = None  # the tenants' file
    max_prompt_tokens: int | None = None
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


OPEN = AccessConfig()  # to everybody who can connect
