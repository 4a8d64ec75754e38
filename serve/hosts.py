"""Hosts and HOST:PORT in IPv4 and IPv6, and how gRPC reaches this machine."""

import ipaddress
import re

from trt_mtp.errors import InputError

TARGET = re.compile(r"[^:/\s][^/\s]*:\d{1,5}")


def bare_host(text: str) -> str:
    """A host without the brackets that an IPv6 address may be written in.

    >>> bare_host("[::1]"), bare_host("::1"), bare_host("127.0.0.1")
    ('::1', '::1', '127.0.0.1')
    """
    is_bracketed = text.startswith("[") and text.endswith("]")
    return text[1:-1] if is_bracketed else text


def host_and_port(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets.

    >>> host_and_port("::1", 8001)
    '[::1]:8001'
    """
    return f"{in_url(host)}:{port}"


def in_url(host: str) -> str:
    """A host as URLs have it: an IPv6 address in brackets."""
    host = bare_host(host)
    return f"[{host}]" if ":" in host else host


def normal_target(text: str) -> str:
    """HOST:PORT in the only form that gRPC takes for an IPv6 address.

    >>> normal_target("::1:8001"), normal_target("[::1]:8001"), normal_target("triton:8001")
    ('[::1]:8001', '[::1]:8001', 'triton:8001')
    """
    host, _, port = text.rpartition(":")
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return text
    return f"{in_url(host)}:{port}"


def is_target(text: str) -> bool:
    """Whether it is HOST:PORT.

    >>> is_target("[::1]:8001"), is_target("::1"), is_target("triton"), is_target("triton:99999")
    (True, False, False, False)
    """
    text = normal_target(text)
    return bool(TARGET.fullmatch(text)) and 0 < int(text.rpartition(":")[2]) < 1 << 16


def require_target(url: str, example: str) -> None:
    """Raise InputError for a --url that is not HOST:PORT."""
    if not is_target(url):
        raise InputError(f"--url is {url[:80]!r}: expected HOST:PORT of gRPC, such as {example}")


def is_loopback(target: str) -> bool:
    """Whether HOST:PORT is on this machine.

    >>> is_loopback("[::1]:8001"), is_loopback("localhost:8001"), is_loopback("10.0.0.1:8001")
    (True, True, False)
    """
    host = bare_host(target.rpartition(":")[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_options(target: str) -> tuple[tuple[str, int], ...]:
    """Options of a gRPC channel: a server on this machine is reached without $http_proxy."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(target) else ()
