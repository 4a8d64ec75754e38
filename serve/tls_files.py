"""The PEM files of one side of a TLS connection, read once and tried out before they are used."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_bounded
from trt_mtp.serve.cert_validity import Validity, validities


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """None for what this side does without."""

    cert: Path | None = None  # this side's certificate, its chain with it
    key: Path | None = None
    ca: Path | None = None  # who may have signed the other side's certificate

    @property
    def paths(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.cert, self.key, self.ca) if path is not None]

    def read(self) -> "TlsContents":
        """What is in them; raises InputError if it can't be used, or not today.

        The other side refuses a certificate that has expired. At a start that is an error, too: a
        gateway that takes over a port must not take it from one whose certificate is valid.
        """
        if (self.cert is None) != (self.key is None):
            raise InputError("a TLS certificate and its key go together: give both, or neither")
        cert, key, ca = (
            read_bounded(path, SMALL) if path else None for path in (self.cert, self.key, self.ca)
        )
        contents = TlsContents(self, cert, key, ca)
        contents.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        contents.check_dates(datetime.now(UTC))
        return contents

    def check(self) -> None:
        """Raise InputError as `read`."""
        self.read()


@dataclass(frozen=True, slots=True)
class TlsContents:
    """What was in the files at one moment: what was tried out is what is used."""

    files: TlsFiles
    cert: bytes | None
    key: bytes | None
    ca: bytes | None

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have a context use them; raises InputError if it can't."""
        files = self.files
        try:
            if self.cert is not None and self.key is not None:
                with _as_file(self.cert) as cert, _as_file(self.key) as key:
                    # an encrypted key would ask for its password on the terminal
                    context.load_cert_chain(cert, key, password=lambda: "")
        except (OSError, ValueError) as error:
            if self.key is not None and b"ENCRYPTED" in self.key:  # by its first lines
                raise InputError(
                    f"{files.key} has a passphrase, which can't be asked for; write the key to a "
                    f"file without one: openssl pkey -in {files.key} -out FILE"
                ) from None
            raise InputError(
                f"{files.cert} and {files.key} are no certificate and its key in PEM: {error}"
            ) from None
        try:
            if self.ca is not None:
                with _as_file(self.ca) as ca:
                    context.load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise InputError(f"{files.ca} has no certificates in PEM: {error}") from None

    def check_dates(self, now: datetime) -> None:
        """Of the own certificate; of the authorities one has to be valid, old ones may stay."""
        files = self.files
        own = _validities(files.cert, self.cert)[:1]  # what follows is its chain
        for path, found in ((files.cert, own), (files.ca, _validities(files.ca, self.ca))):
            problems = [validity.problem(now) for validity in found]
            if problems and all(problems):
                raise InputError(f"the certificate in {path} {problems[0]}: renew it")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path that OpenSSL reads `content` from, which is in memory and has no name elsewhere."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _validities(path: Path | None, content: bytes | None) -> list[Validity]:
    try:
        return [] if content is None else validities(content)
    except ValueError:  # of a form that OpenSSL takes
        raise InputError(f"a certificate in {path} has no dates that can be read") from None


def read_server_files(
    cert: Path | None, key: Path | None, client_ca: Path | None
) -> TlsFiles | None:
    """What --tls-cert, --tls-key and --tls-client-ca name, checked; raises InputError."""
    if cert is None and key is None:
        if client_ca is not None:
            raise InputError("--tls-client-ca goes with --tls-cert and --tls-key")
        return None
    files = TlsFiles(cert, key, client_ca)
    files.check()
    return files


def server_context(contents: TlsContents) -> ssl.SSLContext:
    """What a server speaks TLS with; where there is a CA, clients need a certificate.

    Raises InputError if the files can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if contents.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    contents.load_into(context)
    return context
