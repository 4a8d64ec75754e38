"""A double of Kubernetes' API server: the EndpointSlices of one Service, listed and watched.

It keeps the rules that its clients rely on: a list has the version that it is of, a watch goes on
from a version and ends by itself, and one that is too old is told 410. No admission, no RBAC.
"""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.certificates import Authority
from tests.programs import join
from trt_mtp.controller.gateway.servers import kubernetes

NAMESPACE, SERVICE = "models", "triton"
PATH = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
REDIRECT = b"elsewhere"  # a lie


class KubernetesApi:
    """Make it with `kubernetes_api`. All methods may be called from any thread."""

    def __init__(self, token_file: Path, service: str) -> None:
        self.token_file = token_file
        self._selector = f"kubernetes.io/service-name={service}"
        self.asked: list[dict[str, str]] = []  # the queries that came, in order
        self.lie: bytes | None = None  # in place of every list
        self._slices: dict[str, Any] = {}
        self._history: list[tuple[int, dict[str, Any]]] = []
        self._version = 100
        self._oldest = 0  # versions before it are gone
        self._is_out = False
        self._watches: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._loop = asyncio.new_event_loop()

    def put(self, name: str, target: str, zone: str = "a", **conditions: bool) -> None:
        """A slice with one endpoint, made or changed."""
        kind = "MODIFIED" if name in self._slices else "ADDED"
        self._call(self._change, kind, name, endpoint_slice(name, target, zone, **conditions))

    def delete(self, name: str) -> None:
        """The slice is no longer there."""
        self._call(self._change, "DELETED", name, self._slices[name])

    def bookmark(self) -> int:
        """Tell all watches of a later version, in which nothing of theirs has changed."""
        self._call(self._bookmark)
        return self._version

    def end_watches(self) -> None:
        """As when their time is over."""
        self._call(self._send, None)

    def expire(self, *, is_told: bool) -> None:
        """Forget all versions; a watch is told (410 in its stream), or ended and refused later."""
        self._call(self._expire, is_told)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Connections end, and new ones get 503."""
        self._is_out = True
        self.end_watches()
        try:
            yield
        finally:
            self._is_out = False

    def app(self) -> web.Application:
        """The one path that is asked for."""
        app = web.Application()
        app.add_routes([web.get(PATH, self._get)])
        return app

    def _call(self, work: Any, *arguments: Any) -> None:
        done = threading.Event()

        def run() -> None:
            work(*arguments)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(60)

    def _change(self, kind: str, name: str, changed: dict[str, Any]) -> None:
        self._version += 1
        changed["metadata"]["resourceVersion"] = str(self._version)
        if kind == "DELETED":
            del self._slices[name]
        else:
            self._slices[name] = changed
        event: dict[str, Any] = json.loads(json.dumps({"type": kind, "object": changed}))
        self._history.append((self._version, event))
        self._send(event)

    def _bookmark(self) -> None:
        self._version += 10
        metadata = {"resourceVersion": str(self._version)}
        self._send({"type": "BOOKMARK", "object": {"metadata": metadata}})

    def _expire(self, is_told: bool) -> None:
        self._version += 10
        self._oldest, self._history = self._version, []
        self._send(
            {"type": "ERROR", "object": {"code": 410, "message": "old"}} if is_told else None
        )

    def _send(self, event: dict[str, Any] | None) -> None:
        for watch in self._watches:
            watch.put_nowait(event)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        if self._is_out:
            return web.json_response({"code": 503}, status=503)
        if request.headers["Authorization"] != f"Bearer {self.token_file.read_text()}":
            return web.json_response({"code": 401}, status=401)
        assert request.query["labelSelector"] == self._selector
        if request.query.get("watch") == "true":
            return await self._watch(request)
        if self.lie is not None:
            headers = {"Location": "https://127.0.0.1:1/"} if self.lie == REDIRECT else {}
            return web.Response(status=302 if headers else 200, body=self.lie, headers=headers)
        metadata = {"resourceVersion": str(self._version)}
        return web.json_response({"metadata": metadata, "items": list(self._slices.values())})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        if since < self._oldest:
            return web.json_response({"code": 410}, status=410)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        for version, past in self._history:
            if version > since:
                queue.put_nowait(past)
        self._watches.add(queue)
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.discard(queue)
        return response


def endpoint_slice(name: str, target: str, zone: str, **conditions: bool) -> dict[str, Any]:
    """An EndpointSlice in the API's form, its port named as the chart names it."""
    host, _, port = target.rpartition(":")
    return {
        "metadata": {"name": name, "resourceVersion": "1"},
        "addressType": "IPv4",
        "ports": [{"name": "metrics", "port": 1}, {"name": "grpc", "port": int(port)}],
        "endpoints": [
            {"addresses": [host], "conditions": {"ready": True, **conditions}, "zone": zone}
        ],
    }


@contextmanager
def kubernetes_api(
    folder: Path, monkeypatch: pytest.MonkeyPatch, service: str = SERVICE
) -> Iterator[KubernetesApi]:
    """The double over TLS, and the account and environment of a pod that may ask it."""
    authority = Authority(folder)
    cert, key = authority.issue("api")
    authority.ca.rename(folder / "ca.crt")
    (folder / "token").write_text("t0")
    api = KubernetesApi(folder / "token", service)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    port, runner = _serve(api, context)
    monkeypatch.setattr(kubernetes, "ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
    thread = threading.Thread(target=api._loop.run_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.end_watches()
        asyncio.run_coroutine_threadsafe(runner.cleanup(), api._loop).result(60)
        api._loop.call_soon_threadsafe(api._loop.stop)
        join(thread)
        api._loop.close()


def _serve(api: KubernetesApi, context: ssl.SSLContext) -> tuple[int, web.AppRunner]:
    async def start() -> tuple[int, web.AppRunner]:
        runner = web.AppRunner(api.app(), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return runner.addresses[0][1], runner

    return api._loop.run_until_complete(start())
