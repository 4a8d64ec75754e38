"""Which user of this machine is at the other end of a connection over 127.0.0.1."""

import ipaddress
import os
import sys
from contextlib import suppress

# with sockets of IPv4, and those of IPv6 that speak IPv4; as seen by this process
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED = b"01"  # <net/tcp_states.h>; of a socket that was closed the user is not told


def connected_user(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The user id of the process at `peer`, connected with `own`; None where nobody can tell.

    It takes the longer the more connections this machine has.
    """
    ends = b" ".join(map(_written, (peer, own)))
    for table in TABLES:
        with suppress(OSError), open(table, "rb") as lines:
            for line in lines:
                if ends in line:
                    # number, both ends, state, queues, timer, retransmissions, user, timeout, inode
                    _, _, _, state, _, _, _, user, _, inode, *_ = line.split()
                    return int(user) if state == ESTABLISHED and inode != b"0" else None
    return None


def may_steer(user: int | None) -> bool:
    """Whether it is this process's own user, or root."""
    return user in (0, os.geteuid())


def _written(end: tuple[str, int]) -> bytes:
    """An address and port as the kernel writes them: a number in its own order of bytes.

    >>> _written(("127.0.0.1", 80)) in (b"0100007F:0050", b"7F000001:0050")
    True
    """
    host, port = end
    number = int.from_bytes(ipaddress.IPv4Address(host).packed, sys.byteorder)
    return b"%08X:%04X" % (number, port)
