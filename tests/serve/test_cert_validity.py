"""The dates of certificates, as OpenSSL's own reader has them."""

import contextlib
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.certificates import Authority
from trt_mtp.errors import InputError
from trt_mtp.serve.cert_validity import validities
from trt_mtp.serve.tls_files import TlsFiles


@pytest.mark.parametrize("last", [30, 9_000, 100_000])  # years of two digits, and of four
def test_dates_are_those_that_openssl_reads(tmp_path: Path, last: int) -> None:
    """Of all certificates in a file, in both forms of X.509's times."""
    authority = Authority(tmp_path)
    cert, _ = authority.issue("server", -7, last)
    pem = cert.read_bytes() + authority.ca.read_bytes()
    expected = x509.load_pem_x509_certificates(pem)
    dates = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in expected]
    assert [(one.begin, one.end) for one in validities(pem)] == dates


def test_both_ends_are_valid_and_what_is_outside_is_said(tmp_path: Path) -> None:
    """Before it, after it, and at each end to the second."""
    (validity,) = validities(Authority(tmp_path).issue("server")[0].read_bytes())
    second = datetime.timedelta(seconds=1)
    assert validity.problem(validity.begin) is validity.problem(validity.end) is None
    assert "is not valid before" in str(validity.problem(validity.begin - second))
    assert "expired on" in str(validity.problem(validity.end + second))


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_certificate_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are wrong or missing: dates, or ValueError."""
    folder = tmp_path / "authority"
    if not folder.exists():
        Authority(folder)
    der = bytearray(ssl.PEM_cert_to_DER_cert((folder / "ca.pem").read_text()))
    for at in data.draw(st.lists(st.integers(0, len(der) - 1), max_size=4)):
        der[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(der)) | st.just(len(der)))
    with contextlib.suppress(ValueError):
        validities(ssl.DER_cert_to_PEM_cert(bytes(der[:cut])).encode())


def test_old_authorities_may_stay_beside_valid_ones(tmp_path: Path) -> None:
    """A bundle is refused once none in it is valid; the own certificate by its first one."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    old, _ = authority.issue("old", -3, -2)
    authority.ca.write_bytes(old.read_bytes() + authority.ca.read_bytes())
    cert.write_bytes(cert.read_bytes() + old.read_bytes())
    TlsFiles(cert, key, authority.ca).check()
    authority.ca.write_bytes(old.read_bytes())
    with pytest.raises(InputError, match=f"the certificate in {authority.ca} expired on"):
        TlsFiles(cert, key, authority.ca).check()


def test_a_key_with_a_passphrase_is_refused_as_one(tmp_path: Path) -> None:
    """It is PEM, and fits the certificate; nobody is asked for the passphrase."""
    cert, key = Authority(tmp_path).issue("server", passphrase=b"secret")
    with pytest.raises(InputError, match=f"{key} has a passphrase, .*openssl pkey -in {key} "):
        TlsFiles(cert, key).check()
