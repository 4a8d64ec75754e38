"""A real Triton behind a wire that can be cut; killed, stopped and started again on its ports."""

import asyncio
import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.chaos.relay import Relay
from tests.chaos.wire import lay
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import children, free_ports, is_alive
from trt_mtp.serve.triton import Ports, TritonServer
from trt_mtp.serve.triton_install import find_triton

T = TypeVar("T")
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
LOAD_TIMEOUT_S = 60.0
WATCH_S = 0.1
IN_FLIGHT = re.compile(r"^trt_mtp_requests_(?:running|waiting){.*} (\S+)$", re.MULTILINE)


class Server:
    """A Triton server with variants of the public model, and the relay in front of it."""

    def __init__(self, name: str, repository: Path, models: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.repository = repository
        self.models = tuple(models)
        self._ports = Ports(**free_ports({"grpc": 0, "http": 0, "metrics": 0}))
        self.triton = TritonServer(find_triton(), repository, models, folder, self._ports)
        self.wire = lay(ord(name))
        listener = self.wire.listen() if self.wire else socket.create_server(("127.0.0.1", 0))
        self.relay = Relay(self._ports.grpc, listener)
        self.num_crashes = 0  # deaths that nobody asked for
        self._down_s = 0.0  # how long what dies stays dead
        self._is_death_meant = False  # until the watcher has seen it
        self._is_mending = False
        self._watcher: asyncio.Task[None] | None = None
        # the kernel ends a Triton when the thread that started it ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"triton-{name}")

    @property
    def address(self) -> str:
        """HOST:PORT of its gRPC, through the relay."""
        return self.relay.address

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self.triton.pid

    def stub_pids(self) -> list[int]:
        """The processes of its models as they are now."""
        return children(self.pid)

    @property
    def is_whole(self) -> bool:
        """True while Triton and all its models live."""
        return is_alive(self.pid) and len(self.stub_pids()) >= len(self.models)

    def num_in_flight(self) -> int:
        """Requests that its engine variants run or have waiting; doubles always say 0."""
        connection = http.client.HTTPConnection(self.triton.metrics_url, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return int(sum(map(float, IN_FLIGHT.findall(text))))

    async def start(self) -> None:
        """Start Triton and the relay; returns when all models are ready."""
        await self.relay.start()
        await self._in_thread(self.triton.start)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End Triton and the relay."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._in_thread(self._kill_all)
        self._thread.shutdown()
        await self.relay.stop()
        if self.wire is not None:
            self.wire.close()

    async def die(self, pid: int, down_s: float) -> None:
        """kill -9 of one of its processes; returns when it is whole again, after `down_s`.

        Raises ProcessLookupError when it died by itself just before.
        """
        os.kill(pid, signal.SIGKILL)
        self._down_s, self._is_death_meant = down_s, True
        # until the watcher has seen it, unless Triton itself was quicker and replaced the process
        while self._is_death_meant and (is_alive(pid) or not self.is_whole):
            await asyncio.sleep(WATCH_S)
        self._is_death_meant = False
        await self.wait_whole()

    async def wait_whole(self) -> None:
        """Return when all its processes live, started again where they had died."""
        while self._is_mending or not self.is_whole:
            await asyncio.sleep(WATCH_S)

    async def _watch(self) -> None:
        """Start what died again, as `trt-mtp serve` does."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.is_whole:
                continue
            self._is_mending = True
            self.num_crashes += not self._is_death_meant
            self._is_death_meant = False
            await asyncio.sleep(self._down_s)
            await self._in_thread(self._kill_all)
            with contextlib.suppress(TrtMtpError):  # it died again: the next look finds that
                await self._in_thread(self.triton.start)
            self._down_s, self._is_mending = 0.0, False

    async def add_version(self, model: str, code: str) -> None:
        """Load a second version of `model` whose model.py is `code`; returns what came of it."""
        folder = self.repository / model / "2"
        folder.mkdir()
        (folder / "model.py").write_text(code)
        await self._load(model)

    async def remove_version(self, model: str) -> None:
        """Take the second version of `model` away again."""
        shutil.rmtree(self.repository / model / "2")
        await self._load(model)

    async def _load(self, model: str) -> None:
        from tritonclient.grpc.aio import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.triton.grpc_url)
        headers = {ADMIN_HEADER: self.triton.admin_key}
        try:
            await client.load_model(model, headers=headers, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException:
            pass  # a version that can't be loaded is refused; the other one goes on
        finally:
            await client.close()

    def _kill_all(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # stop() doesn't wait for answers of a dead server
        self.triton.stop()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
