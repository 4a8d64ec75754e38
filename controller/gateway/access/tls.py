"""TLS whose files may be replaced while the gateway runs, as certificate managers do.

What is read is tried out first: half-written or mismatched files leave those before in use.
"""

import logging
from typing import Any

import grpc

from trt_mtp.errors import InputError
from trt_mtp.files import FileWatch
from trt_mtp.serve.tls_files import TlsContents, TlsFiles

log = logging.getLogger(__name__)


class WatchedTls:
    """TLS files, looked at again and again; `contents` are the last that can be used."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises InputError when the files can't be used."""
        self._files = files
        self._watch = FileWatch(*files.paths)
        self._watch.has_changed()  # what comes after this is a change
        self.contents = files.read()
        self._told = ""  # what was last said to be wrong

    def has_changed(self) -> bool:
        """True once for each time that the files changed and can be used."""
        if not self._watch.has_changed():
            return False
        try:
            self.contents = self._files.read()
        except InputError as error:
            self._watch.look_again()
            if str(error) != self._told:
                self._told = str(error)
                log.error("TLS files can't be used, those read before stay: %s", error)
            return False
        self._told = ""
        log.info("TLS files changed: %s", self._files.cert or self._files.ca)
        return True


def server_credentials(files: TlsFiles) -> Any:
    """gRPC's credentials of a server, which look at the files for every connection.

    Where there is a CA, clients need a certificate. Raises InputError when they can't be used.
    """
    watched = WatchedTls(files)

    def changed() -> Any | None:
        return _server_configuration(watched.contents) if watched.has_changed() else None

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(watched.contents),
        changed,
        require_client_authentication=files.ca is not None,
    )


def channel_credentials(contents: TlsContents) -> Any:
    """gRPC's credentials of a client; without a CA, those that gRPC brings are trusted."""
    return grpc.ssl_channel_credentials(contents.ca, contents.key, contents.cert)


def _server_configuration(contents: TlsContents) -> Any:
    pair = (contents.key, contents.cert)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=contents.ca)
