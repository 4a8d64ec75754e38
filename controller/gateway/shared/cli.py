"""The options of `trt-mtp gateway` for what gateways share."""

from typing import TYPE_CHECKING, Any

import click

from trt_mtp.errors import InputError
from trt_mtp.extras import require_extras
from trt_mtp.options import FILE, together

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.shared.config import SharedConfig

# what `read_shared` takes
shared_options = together(
    click.option(
        "--shared",
        metavar="URL",
        help="Redis or Valkey through which gateways share learned acceptance and tenants' "
        "limits: redis://HOST:PORT/DB, or rediss:// for TLS.",
    ),
    click.option(
        "--shared-password-file",
        type=FILE,
        help="File with the password for --shared; it may also be in the variable "
        "TRT_MTP_GATEWAY_SHARED_PASSWORD.",
    ),
    click.option(
        "--shared-ca",
        type=FILE,
        help="Verify the server of --shared with this CA.  [default: the system's]",
    ),
)


def read_shared(options: dict[str, Any]) -> "SharedConfig | None":
    """What the options mean, taken out of `options`; raises InputError where they don't fit."""
    from trt_mtp.controller.gateway.shared.config import parse_shared
    from trt_mtp.serve.tls_files import TlsFiles

    url, password_file, ca = (
        options.pop(name) for name in ("shared", "shared_password_file", "shared_ca")
    )
    if url is None:
        if password_file is not None or ca is not None:
            raise InputError("--shared-password-file and --shared-ca go with --shared")
        return None
    config = parse_shared(url, password_file, ca)
    require_extras("--shared", "redis")
    config.password()  # a missing file is said now
    if ca is not None:
        TlsFiles(ca=ca).check()
    return config
