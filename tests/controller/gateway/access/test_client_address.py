"""Whom callers are told apart by where nobody has a token."""

import pytest

from trt_mtp.controller.gateway.access.authenticator import Authenticator
from trt_mtp.controller.gateway.access.client_address import grpc_host
from trt_mtp.controller.gateway.access.config import OPEN
from trt_mtp.controller.gateway.scoreboard import Scoreboard


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),  # the same on a port for both kinds
        ("2001:db8::1", "2001:db8::ffff:1", True),  # a client may take any of its network's
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("", "", True),
    ],
)
def test_a_machine_is_one_caller(one: str, other: str, is_same: bool) -> None:
    """However many connections and streams it has: they share an owner and its room."""
    authenticator = Authenticator(OPEN, Scoreboard(None))
    first, second = authenticator.caller((), one), authenticator.caller((), other)
    assert (first.owner == second.owner) == is_same
    assert (first.room is second.room) == is_same


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.1:50051", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50051", "2001:db8::1"),
        ("ipv6:[fe80::1%25eth0]:50051", "fe80::1%eth0"),
        ("unix:", ""),
    ],
)
def test_grpcs_names_of_peers(peer: str, host: str) -> None:
    """As gRPC's naming document has them."""
    assert grpc_host(peer) == host
