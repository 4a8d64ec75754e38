"""Who connects, where nobody has a token: the address, as both doors tell it."""

import functools
import ipaddress
from urllib.parse import unquote

IPV6_PREFIX = 64  # bits that one customer of a provider has at least (RFC 6177)


@functools.lru_cache(4096)
def client_network(host: str) -> str:
    """The IPv4 address, or the network that one client's IPv6 addresses are in.

    >>> client_network("::ffff:192.0.2.1"), client_network("2001:db8::1%eth0")
    ('192.0.2.1', '2001:db8::/64')
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a Unix socket's
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_PREFIX), strict=False))


def grpc_host(peer: str) -> str:
    """The host in gRPC's name of a peer.

    >>> grpc_host("ipv4:192.0.2.1:80"), grpc_host("ipv6:%5B2001:db8::1%5D:80")
    ('192.0.2.1', '2001:db8::1')
    """
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
