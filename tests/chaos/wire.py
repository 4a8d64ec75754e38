"""A pair of virtual Ethernet devices whose far end can be taken down: packets are truly lost."""

import contextlib
import ctypes
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trt_mtp.errors import TrtMtpError

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
NAMESPACES = Path("/var/run/netns")
SUBNETS = 1 << 14  # of four addresses each, in 10.231.0.0/16


class Wire:
    """A network namespace with one address, reached through the pair; needs root and `ip`."""

    def __init__(self, number: int) -> None:
        """`number` tells the wires of a process apart; raises TrtMtpError where there are none."""
        subnet = (os.getpid() * 4 + number) % SUBNETS
        base = f"10.231.{subnet // 64}.{subnet % 64 * 4}".rpartition(".")
        near, far = (f"{base[0]}.{int(base[2]) + i}" for i in (1, 2))
        self.address = far
        self._name = f"chaos{subnet}"
        self._near, self._far = f"chaos{subnet}a", f"chaos{subnet}b"
        try:
            self._ip("netns", "add", self._name)
            pair = ("add", self._near, "type", "veth", "peer", self._far, "netns", self._name)
            self._ip("link", *pair)
            self._ip("addr", "add", f"{near}/30", "dev", self._near)
            self._ip("link", "set", self._near, "up")
            self._ip("-n", self._name, "addr", "add", f"{far}/30", "dev", self._far)
            self.mend()
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise TrtMtpError(f"no network namespaces here: {error}") from error

    def listen(self) -> socket.socket:
        """A listening socket at `address`, with a free port."""
        with ThreadPoolExecutor(1) as thread:  # it ends in the namespace, not we
            return thread.submit(self._listen).result()

    def cut(self) -> None:
        """From now on no packet arrives, in either direction."""
        self._ip("-n", self._name, "link", "set", self._far, "down")

    def mend(self) -> None:
        """Packets arrive; TCP sends again what was lost."""
        self._ip("-n", self._name, "link", "set", self._far, "up")

    def close(self) -> None:
        """Remove everything."""
        for command in (("link", "del", self._near), ("netns", "del", self._name)):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                self._ip(*command)

    def _listen(self) -> socket.socket:
        descriptor = os.open(NAMESPACES / self._name, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            return socket.create_server((self.address, 0))
        finally:
            os.close(descriptor)

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


def lay(number: int) -> Wire | None:
    """A wire, or None where there are no network namespaces."""
    try:
        return Wire(number)
    except TrtMtpError:
        return None
