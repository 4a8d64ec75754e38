"""The servers behind a Service of Kubernetes: its EndpointSlices, listed and watched.

The API is asked as the pod's own account, which needs `list` and `watch` on `endpointslices` in the
Service's namespace and nothing more. kubernetes.io/docs/reference/using-api/api-concepts has the
rules of watching that are followed here: a version to go on from, bookmarks, 410 Gone.
"""

import asyncio
import ipaddress
import logging
import math
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.sources import MAX_SERVERS, Report, Server
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_text
from trt_mtp.serve.hosts import host_and_port

log = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PORT_NAME = "grpc"  # of the Service's port, where it has several
WATCH_S = 60.0  # of one request; a connection that died without a word is noticed after it
ANSWER_S = 10.0  # for a list, and for the end of a watch
RETRY_S = 1.0  # after a failure, twice as long after each further one
MAX_RETRY_S = 15.0
PACE_S = 0.5  # from the beginning of one watch to that of the next, at least
JITTER = 0.25  # of a duration, both ways: gateways don't ask in step
LINE_BYTES = 4 * 1024 * 1024  # an event of a slice with a thousand endpoints fits in
LIST_BYTES = 64 * 1024 * 1024
VERSIONS = {"IPv4": ipaddress.IPv4Address, "IPv6": ipaddress.IPv6Address}


class _GoneError(Exception):
    """The version to go on from is too old: list again."""


class _UnavailableError(Exception):
    """The API gave no answer that could be used."""


class _Conditions(BaseModel):
    ready: bool | None = None  # None stands for yes
    terminating: bool | None = None


class _Endpoint(BaseModel):
    addresses: Annotated[list[str], Field(min_length=1, max_length=100)]
    conditions: _Conditions = Field(default_factory=_Conditions)
    zone: str | None = None

    @property
    def is_terminating(self) -> bool:
        return self.conditions.terminating is True

    @property
    def is_ready(self) -> bool:
        return self.conditions.ready is not False


class _Port(BaseModel):
    name: str | None = None
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None


class _Metadata(BaseModel):
    name: str = ""
    resourceVersion: str = ""


class _Slice(BaseModel):
    metadata: _Metadata
    addressType: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _SliceList(BaseModel):
    metadata: _Metadata
    items: list[_Slice] | None = None


class _Event(BaseModel):
    type: str
    object: dict[str, Any]


class EndpointSlices:
    """The servers of a Service that are ready and not about to end."""

    is_many = True

    def __init__(self, namespace: str, service: str) -> None:
        """Raises InputError outside of a pod with a service account."""
        self.servers: Sequence[Server] = ()
        self.problem = ""
        self._name = f"Service {namespace}/{service}"
        self._url = f"{_api_url(self._name)}/namespaces/{namespace}/endpointslices"
        self._query = {"labelSelector": f"kubernetes.io/service-name={service}"}
        self._slices: dict[str, _Slice] = {}
        self._version = ""  # to go on from; empty: list first
        self._num_failures = 0  # since the last answer
        self._asked_at = -math.inf  # monotonic; the last watch

    async def watch(self, report: Report) -> None:
        """List, then watch; what fails is tried again, and changes nothing."""
        async with aiohttp.ClientSession(read_bufsize=LINE_BYTES) as session:
            while True:
                try:
                    if not self._version:
                        await self._list(session, report)
                    await self._watch(session, report)
                except _GoneError:
                    self._version = ""
                except (
                    _UnavailableError, aiohttp.ClientError, OSError, ValueError, InputError
                ) as error:  # fmt: skip
                    await self._wait(error)
                await self._pace()

    async def _list(self, session: aiohttp.ClientSession, report: Report) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with self._asked(session, self._query, timeout) as response:
            found = _SliceList.model_validate_json(await _body(response))
        self._take({each.metadata.name: each for each in found.items or ()}, report)
        self._version = found.metadata.resourceVersion

    async def _watch(self, session: aiohttp.ClientSession, report: Report) -> None:
        """Follow the changes until the API ends the answer, as it is asked to after a while."""
        seconds = _jittered(WATCH_S)
        query = self._query | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(int(seconds), 1)),
        }
        timeout = aiohttp.ClientTimeout(total=seconds + ANSWER_S, sock_connect=ANSWER_S)
        async with self._asked(session, query, timeout) as response:
            self._answered()
            async for line in response.content:
                self._apply(_Event.model_validate_json(line), report)

    @asynccontextmanager
    async def _asked(
        self,
        session: aiohttp.ClientSession,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is what was asked for; what isn't read to its end is closed at once."""
        async with session.get(self._url, params=query, **self._access(timeout)) as response:
            try:
                await _check(response)
                yield response
            except BaseException:
                _abort(response)
                raise

    def _apply(self, event: _Event, report: Report) -> None:
        """Take an event in."""
        if event.type == "ERROR":
            if event.object.get("code") == 410:
                raise _GoneError
            raise _UnavailableError(repr(event.object.get("message", "an error"))[:200])
        changed = _Slice.model_validate(event.object)
        if event.type != "BOOKMARK":
            slices = {k: v for k, v in self._slices.items() if k != changed.metadata.name}
            if event.type != "DELETED":
                slices[changed.metadata.name] = changed
            self._take(slices, report)
        self._version = changed.metadata.resourceVersion

    def _take(self, slices: dict[str, _Slice], report: Report) -> None:
        """Report the servers in `slices`; raises ValueError where there can't be such."""
        servers = servers_in(slices)
        if len(servers) > MAX_SERVERS:
            raise ValueError(f"it names {len(servers):,} servers, more than {MAX_SERVERS:,}")
        self._slices, self.servers = slices, servers
        self._answered()
        report(servers)

    def _access(self, timeout: aiohttp.ClientTimeout) -> dict[str, Any]:
        """With the account's files as they are now: tokens are renewed every hour."""
        token = read_text(ACCOUNT / "token", SMALL).strip()
        context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        # not to wherever an answer points, with the account's token
        return {"headers": headers, "ssl": context, "timeout": timeout, "allow_redirects": False}

    async def _pace(self) -> None:
        """Leave time between two watches, also where each ends as soon as it begins."""
        early_s = self._asked_at + PACE_S - time.monotonic()
        if early_s > 0:
            await asyncio.sleep(_jittered(early_s))
        self._asked_at = time.monotonic()

    async def _wait(self, error: Exception) -> None:
        why = first_problem(error, ()) if isinstance(error, ValidationError) else str(error)
        self._note(f"no news of {self._name} from the Kubernetes API: {why or repr(error)}")
        seconds = min(RETRY_S * 2.0**self._num_failures, MAX_RETRY_S)
        self._num_failures += 1
        await asyncio.sleep(_jittered(seconds))

    def _answered(self) -> None:
        self._num_failures = 0
        self._note("" if self._slices else f"{self._name} has no EndpointSlice: is its name right?")

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        elif self.problem and not problem:
            log.info("there is news of %s again", self._name)
        self.problem = problem


def servers_in(slices: Mapping[str, _Slice]) -> Sequence[Server]:
    """The servers of a Service, of all its slices together.

    While slices change, an endpoint may be in two of them, and the news in one only: whatever says
    that it ends is right. The IPv6 addresses count where there are no others, as in a dual-stack
    Service each server has both. Raises ValueError for an address that is none.
    """
    ready: dict[str, dict[str, Server]] = {version: {} for version in VERSIONS}
    ending = set[str]()
    for each in slices.values():
        port = _port(each)
        if port is None or each.addressType not in ready:
            continue
        for endpoint in each.endpoints or ():
            address = VERSIONS[each.addressType](endpoint.addresses[0])  # the others mean the same
            target = host_and_port(str(address), port)
            if endpoint.is_terminating:
                ending.add(target)
            elif endpoint.is_ready:
                ready[each.addressType][target] = Server(target, endpoint.zone or "")
    chosen = ready["IPv4"] or ready["IPv6"]
    return [chosen[target] for target in sorted(chosen) if target not in ending]


def _port(each: _Slice) -> int | None:
    """The port of gRPC: the one of that name, or the only one."""
    ports = [port for port in each.ports or () if port.port]
    named = [port for port in ports if port.name == PORT_NAME]
    for port in named or (ports if len(ports) == 1 else ()):
        return port.port
    return None


def _api_url(name: str) -> str:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    if not (host and port.isdigit()) or not (ACCOUNT / "token").exists():
        raise InputError(
            f"--triton names the {name}, and this is not a pod with a service account "
            f"($KUBERNETES_SERVICE_HOST, {ACCOUNT}/token): run the gateway in the cluster, or give "
            f"HOST:PORT or dns:NAME:PORT"
        )
    return f"https://{host_and_port(host, int(port))}/apis/discovery.k8s.io/v1"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """An answer, unpacked; raises ValueError for one that is too long."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LIST_BYTES:
            raise ValueError(f"its answer has more than {LIST_BYTES:,} bytes")
    return bytes(body)


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raise for an answer that is not what was asked for."""
    if response.status == 410:
        raise _GoneError
    if response.status != 200:
        hint = ""
        if response.status == 403:
            hint = ": allow the pod's service account to list and watch endpointslices"
        raise _UnavailableError(f"it answers {response.status}{hint}")


def _abort(response: aiohttp.ClientResponse) -> None:
    """Close its connection without TLS' leave-taking, for which a process that ends can't wait."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


def _jittered(seconds: float) -> float:
    return seconds * (1 + JITTER * (2 * DRAWS.random() - 1))
