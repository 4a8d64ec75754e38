"""The PEM files of one side of a TLS connection, tried out before they are used."""

import ssl
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

    def check(self) -> None:
        """Raise InputError if the files can't be used, or not today.

        The other side refuses a certificate that has expired. At a start that is an error, too: a
        gateway that takes over a port must not take it from one whose certificate is valid.
        """
        if (self.cert is None) != (self.key is None):
            raise InputError("a TLS certificate and its key go together: give both, or neither")
        for path in self.paths:
            read_bounded(path, SMALL)  # OpenSSL would wait for a pipe
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self)
        self._check_dates(datetime.now(UTC))

    def _check_dates(self, now: datetime) -> None:
        """Of the own certificate; of the authorities one has to be valid, old ones may stay."""
        own = _validities(self.cert)[:1] if self.cert else []  # what follows is its chain
        for path, found in ((self.cert, own), (self.ca, _validities(self.ca) if self.ca else [])):
            problems = [validity.problem(now) for validity in found]
            if problems and all(problems):
                raise InputError(f"the certificate in {path} {problems[0]}: renew it")


def _validities(path: Path) -> list[Validity]:
    try:
        return validities(read_bounded(path, SMALL))
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


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """What a server speaks TLS with; where there is a CA, clients need a certificate.

    Raises InputError if the files can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        if files.cert is not None:
            # an encrypted key would ask for its password on the terminal
            context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{files.cert} and {files.key} are no certificate and its key in PEM: {error}"
        ) from None
    try:
        if files.ca is not None:
            context.load_verify_locations(files.ca)
    except (OSError, ValueError) as error:
        raise InputError(f"{files.ca} has no certificates in PEM: {error}") from None
