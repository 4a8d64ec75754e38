"""TLS whose files may be replaced while the gateway runs, as certificate managers do.

What is read is tried out first: half-written or mismatched files leave those before in use.
"""

import logging
from typing import Any

import grpc

from trt_mtp.errors import InputError
from trt_mtp.serve.tls_files import TlsFiles

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class WatchedTls:
    """TLS files, looked at again and again."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises InputError when the files can't be used."""
        files.check()
        self.files = files
        self._stamp = _stamp(files)

    def has_changed(self) -> bool:
        """True once for each time that the files changed and can be used."""
        try:
            stamp = _stamp(self.files)
            if stamp == self._stamp:
                return False
            self.files.check()
        except (OSError, InputError) as error:
            log.error("TLS files can't be used, those read before stay: %s", error)
            return False
        self._stamp = stamp
        log.info("TLS files changed: %s", self.files.cert or self.files.ca)
        return True


def server_credentials(files: TlsFiles) -> Any:
    """gRPC's credentials of a server, which look at the files for every connection.

    Where there is a CA, clients need a certificate. Raises InputError when they can't be used.
    """
    watched = WatchedTls(files)

    def changed() -> Any | None:
        return _server_configuration(files) if watched.has_changed() else None

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(files), changed, require_client_authentication=files.ca is not None
    )


def channel_credentials(files: TlsFiles) -> Any:
    """gRPC's credentials of a client; without a CA, those that gRPC brings are trusted."""
    return grpc.ssl_channel_credentials(
        root_certificates=files.ca.read_bytes() if files.ca else None,
        private_key=files.key.read_bytes() if files.key else None,
        certificate_chain=files.cert.read_bytes() if files.cert else None,
    )


def _server_configuration(files: TlsFiles) -> Any:
    assert files.cert is not None
    assert files.key is not None
    return grpc.ssl_server_certificate_configuration(
        [(files.key.read_bytes(), files.cert.read_bytes())],
        root_certificates=files.ca.read_bytes() if files.ca else None,
    )


def _stamp(files: TlsFiles) -> Stamp:
    """Changes whenever a file does; raises OSError."""
    stats = [path.stat() for path in (files.cert, files.key, files.ca) if path is not None]
    return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)
