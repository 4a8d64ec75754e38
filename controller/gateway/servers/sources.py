"""Where the addresses of the servers come from: a list, a DNS name, a Service of Kubernetes."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from trt_mtp.controller.gateway.servers.addresses import resolve
from trt_mtp.errors import InputError
from trt_mtp.serve.hosts import is_target, normal_target

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
MAX_SERVERS = 4_096  # each has a connection
DNS = "dns:"
KUBERNETES = "kubernetes:"
# RFC 1123 labels, as Kubernetes names namespaces and Services
SERVICE = re.compile(r"([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9-]{0,62})")


class Server(NamedTuple):
    """A server that may be sent requests."""

    target: str  # HOST:PORT of its gRPC
    zone: str = ""  # where it runs; empty if that is not known


Report = Callable[[Sequence[Server]], None]


class Source(Protocol):
    """Says which servers there are."""

    is_many: bool  # False for a single server that never changes
    servers: Sequence[Server]  # the last that were reported, or known from the start
    problem: str  # why no news of them can be had; empty while there is none

    async def watch(self, report: Report) -> None:
        """Report all servers each time they may have changed, until cancelled.

        While no news can be had, nothing is reported: what was known stays.
        """


def source_of(triton: str) -> Source:
    """What --triton names; raises InputError for anything else, and outside of a cluster."""
    targets = [normal_target(target.strip()) for target in triton.split(",") if target.strip()]
    if len(targets) == 1 and targets[0].startswith(KUBERNETES):
        return _kubernetes(targets[0])
    if len(targets) == 1 and targets[0].startswith(DNS):
        return DnsServers(_checked(targets[0].removeprefix(DNS), targets[0]))
    if not targets:
        raise _refused(triton)
    return ListedServers([_checked(target, target) for target in targets])


class ListedServers:
    """Servers that are named once and for all."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.servers: Sequence[Server] = [Server(target) for target in dict.fromkeys(targets)]
        self.is_many = len(self.servers) > 1
        self.problem = ""

    async def watch(self, report: Report) -> None:
        """They never change."""


class DnsServers:
    """Every address that a DNS name has, looked up every RESOLVE_S."""

    is_many = True

    def __init__(self, target: str) -> None:
        """`target` is NAME:PORT."""
        self.servers: Sequence[Server] = ()
        self.problem = ""
        self._name, _, port = target.rpartition(":")
        self._port = int(port)

    async def watch(self, report: Report) -> None:
        """Look the name up again and again."""
        while True:
            try:
                self._take(await resolve(self._name, self._port), report)
            except (OSError, ValueError) as error:  # ValueError: a name that can't be one
                reason = getattr(error, "strerror", None) or error
                self._note(f"{self._name} can't be resolved: {reason}")
            except InputError as error:  # TLS files that are being replaced, say
                self._note(f"the servers of {self._name} can't be taken over: {error}")
            await asyncio.sleep(RESOLVE_S)

    def _take(self, targets: Sequence[str], report: Report) -> None:
        """Report the servers; raises ValueError where there can't be so many."""
        if len(targets) > MAX_SERVERS:
            raise ValueError(f"it has {len(targets):,} addresses, more than {MAX_SERVERS:,}")
        self.servers = [Server(target) for target in targets]
        report(self.servers)
        self.problem = ""

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem


def _kubernetes(target: str) -> Source:
    from trt_mtp.controller.gateway.servers.kubernetes import EndpointSlices  # aiohttp is slow

    names = SERVICE.fullmatch(target.removeprefix(KUBERNETES))
    if names is None:
        raise _refused(target)
    return EndpointSlices(names[1], names[2])


def _checked(target: str, shown: str) -> str:
    """A HOST:PORT; raises InputError for anything else."""
    if not is_target(target) or target.startswith((DNS, KUBERNETES)):
        raise _refused(shown)
    return target


def _refused(shown: str) -> InputError:
    return InputError(
        f"--triton is {shown!r}: expected HOST:PORT, several with commas between them, "
        f"or one dns:NAME:PORT or kubernetes:NAMESPACE/SERVICE"
    )
