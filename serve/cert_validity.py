"""From when until when an X.509 certificate is valid, read from its PEM file.

Python's ssl tells it of the other side's certificate only, once a connection is made.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

BLOCK = re.compile(
    rb"-----BEGIN (?:X509 )?CERTIFICATE-----(.+?)-----END (?:X509 )?CERTIFICATE-----", re.DOTALL
)
VERSION, UTC_TIME = 0xA0, 0x17  # tags: TBSCertificate's optional [0], and years of two digits
FIRST_YEAR = 1950  # that two digits can mean


@dataclass(frozen=True, slots=True)
class Validity:
    """Both ends count as valid."""

    begin: datetime
    end: datetime

    def problem(self, now: datetime) -> str | None:
        """What is wrong with it at `now`, as the end of a sentence; None if it is valid."""
        if now < self.begin:
            return f"is not valid before {self.begin:%Y-%m-%d %H:%M} UTC"
        if now > self.end:
            return f"expired on {self.end:%Y-%m-%d %H:%M} UTC"
        return None


def validities(pem: bytes) -> list[Validity]:
    """Of the certificates in a PEM file, in order; raises ValueError for one that is damaged."""
    try:
        return [_validity(binascii.a2b_base64(block)) for block in BLOCK.findall(pem)]
    except (IndexError, StopIteration):
        raise ValueError("a certificate ends too early") from None


def _validity(der: bytes) -> Validity:
    """RFC 5280, section 4.1: Certificate, in it TBSCertificate, in it Validity."""
    certificate = next(_elements(der))[1]
    fields = _elements(next(_elements(certificate))[1])
    tag, _ = next(fields)
    for _ in range(3 if tag == VERSION else 2):  # serial number, algorithm, issuer
        next(fields)
    begin, end = (_time(*element) for element in _elements(next(fields)[1]))
    return Validity(begin, end)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element (X.690, section 8.1); tags here have one byte."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:  # its other bits tell how many bytes the length has
            num = size & 0x7F
            size, at = int.from_bytes(der[at : at + num], "big"), at + num
        yield tag, der[at : at + size]
        at += size


def _time(tag: int, content: bytes) -> datetime:
    """RFC 5280, section 4.1.2.5: both forms in UTC, to the second."""
    text = content.decode("ascii")
    if tag == UTC_TIME:
        text = ("19" if int(text[:2]) >= FIRST_YEAR % 100 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
