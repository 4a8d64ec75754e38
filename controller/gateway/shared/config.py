"""Where gateways share what they know: the address of a Redis or Valkey, and its password."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_text
from trt_mtp.serve.hosts import host_and_port

DEFAULT_PORT = 6379
PASSWORD = "TRT_MTP_GATEWAY_SHARED_PASSWORD"  # the environment variable
FORM = "redis://HOST:PORT/DB, or rediss://HOST:PORT/DB for TLS"


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """A database of a server that speaks the Redis protocol."""

    host: str
    port: int = DEFAULT_PORT
    database: int = 0
    user: str | None = None  # of the server's access lists; None is its default user
    is_tls: bool = False
    ca: Path | None = None  # None: the authorities of the system
    password_file: Path | None = None  # read for every connection, so that it may change

    def __str__(self) -> str:
        """The address as in logs."""
        return f"redis{'s' if self.is_tls else ''}://{host_and_port(self.host, self.port)}"

    def password(self) -> str | None:
        """From the file or the environment, None for none; raises InputError."""
        if self.password_file is None:
            return os.environ.get(PASSWORD, "").strip() or None  # a Secret's may end in a newline
        password = read_text(self.password_file, SMALL).strip()
        if not password:
            raise InputError(f"{self.password_file} is empty, expected the password of {self}")
        return password


def parse_shared(
    url: str, password_file: Path | None = None, ca: Path | None = None
) -> SharedConfig:
    """What the options mean; raises InputError, which never repeats the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"--shared has an address that can't be read: expected {FORM}") from None
    if parts.scheme not in ("redis", "rediss") or not host or parts.query or parts.fragment:
        raise InputError(f"--shared is not an address of the form {FORM}")
    if parts.password is not None:
        raise InputError(
            f"--shared has a password in it, which everybody can read in the list of processes: "
            f"put it into a file for --shared-password-file, or into the variable {PASSWORD}"
        )
    if ca is not None and parts.scheme == "redis":
        raise InputError("--shared-ca is for TLS: write rediss:// in --shared")
    database = parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdecimal() and len(database) <= 9):
        raise InputError(f"--shared names a database that is not a number: expected {FORM}")
    return SharedConfig(
        host,
        DEFAULT_PORT if port is None else port,
        int(database),
        unquote(parts.username) if parts.username else None,
        parts.scheme == "rediss",
        ca,
        password_file,
    )
