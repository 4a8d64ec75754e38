"""A real Triton behind a wire that can be cut; killed, stopped and started again on its ports."""

import asyncio
import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from tests.chaos.relay import Relay
from tests.chaos.wire import lay
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve import triton
from trt_mtp.serve.limits import Limits
from trt_mtp.serve.ports import Ports
from trt_mtp.serve.processes import children, free_ports, is_alive
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

T = TypeVar("T")
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
LOAD_TIMEOUT_S = 60.0
WATCH_S = 0.1
WHOLE_S = 300.0  # for a server to be whole again, which may take two starts of a loaded machine
DOUBLES = Limits(answer_s=15.0, load_s=20.0)
VARIANTS = Limits(answer_s=15.0, load_s=120.0)  # they load one after the other
IN_FLIGHT = re.compile(r"^trt_mtp_requests_(?:running|waiting){.*} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Restart:
    """A server was started again."""

    reason: str
    at: float  # monotonic
    is_meant: bool  # by a fault that kills


class Server:
    """A Triton server with variants of the public model, and the relay in front of it."""

    def __init__(
        self,
        name: str,
        repository: Path,
        models: Sequence[str],
        folder: Path,
        notes: Path | None = None,
    ) -> None:
        """`notes` is the folder that models which are doubles look into."""
        folder.mkdir(parents=True)
        self.notes = notes
        self.name = name
        self.repository = repository
        self.models = tuple(models)
        self._ports = Ports(**free_ports({"grpc": 0, "http": 0, "metrics": 0}))
        # a campaign asks for more restarts than a server should survive
        with patch.object(triton, "RESTART_WINDOW_S", 0.0):
            self.triton = TritonServer(
                find_triton(),
                repository,
                models,
                folder,
                self._ports,
                limits=DOUBLES if notes else VARIANTS,
            )
        self.wire = lay(ord(name))
        listener = self.wire.listen() if self.wire else socket.create_server(("127.0.0.1", 0))
        self.relay = Relay(self._ports.grpc, listener)
        self.restarts: list[Restart] = []
        self._down_until = 0.0  # what died stays dead until then, monotonic
        self._is_death_meant = False  # until the watcher has seen it
        self._is_loading_held = False  # until the watcher has seen it, too
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
        """Requests that its engine variants run or have waiting; doubles always say 0.

        0 where it died just now, and its requests with it.
        """
        connection = http.client.HTTPConnection(self.triton.metrics_url, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
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
        self._kill()  # before the thread is asked, which may wait for a start
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
        self._down_until = time.monotonic() + down_s
        await self._restarted()

    async def load_for_ever(self, model: str) -> None:
        """A start at which `model` never finishes loading; returns when it is whole after that."""
        assert self.notes is not None
        self._is_loading_held = True
        (self.notes / f"held-{model}").touch()
        await self.die(self.pid, 0.0)

    async def abort(self) -> None:
        """Abort without dying, as Triton's signal handler does when it hangs; until it is whole."""
        with self.triton.log.open("a") as log:
            log.write("Signal (6) received.\n")
        os.kill(self.pid, signal.SIGSTOP)
        await self._restarted()

    async def _restarted(self) -> None:
        """Return when it was started again, which the caller meant, and is whole."""
        self._is_death_meant, before = True, len(self.restarts)
        await self._until(lambda: len(self.restarts) > before, "a restart")
        await self.wait_whole()

    async def wait_whole(self) -> None:
        """Return when all its processes live, started again where they had died."""
        await self._until(lambda: self.is_whole and not self._is_mending, "all its processes")

    async def _until(self, is_so: Callable[[], bool], what: str) -> None:
        """Raises TimeoutError, which names what was waited for."""
        until = time.monotonic() + WHOLE_S
        while not is_so():
            if time.monotonic() > until:
                raise TimeoutError(f"server {self.name} waits for {what} for {WHOLE_S:.0f} s")
            await asyncio.sleep(WATCH_S)

    async def _watch(self) -> None:
        """Start what died or hangs again, by what `trt-mtp serve` uses for that."""
        while True:
            await asyncio.sleep(WATCH_S)
            if time.monotonic() < self._down_until:
                continue
            self._is_mending = True
            try:
                await self._in_thread(lambda: self.triton.check(self._note))
            except TrtMtpError as error:  # it died again: the next look finds that
                self._note(str(error))
            self._is_mending = False

    def _note(self, text: str) -> None:
        """What `check` has to say; called from its thread."""
        if not text.endswith("; starting again"):
            return
        is_held = self._is_loading_held and " not loaded " in text
        self.restarts.append(Restart(text, time.monotonic(), self._is_death_meant or is_held))
        self._is_death_meant = False
        self._is_loading_held = self._is_loading_held and not is_held

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
        self._kill()
        self.triton.stop()  # doesn't wait for answers of a dead server

    def _kill(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
