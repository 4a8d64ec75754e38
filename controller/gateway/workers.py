"""Several gateway processes on one port: started, watched, started again when one dies.

They share the port (SO_REUSEPORT: the kernel spreads connections), what is in flight and what
tenants used (scoreboard.py) and their metrics (prometheus-client's files, one per process). With
--shared they are as many gateways to the store, through which tenants' limits go then and they
learn from each other.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trt_mtp.controller.gateway.log_lines import begin_log
from trt_mtp.controller.gateway.metrics import SHARED_FOLDER
from trt_mtp.controller.gateway.process import (
    OnReady,
    ProcessConfig,
    run_gateway,
)
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat, scoreboard_memory
from trt_mtp.controller.gateway.servers.addresses import stream_socket
from trt_mtp.controller.state import default_replica
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.interrupts import time_left
from trt_mtp.parent import die_with_parent
from trt_mtp.serve.hosts import host_and_port
from trt_mtp.serve.processes import noted_signals, without_ctrl_c
from trt_mtp.temporary import held, make_again

log = logging.getLogger(__name__)

MAX_PORT = 65_535
WATCH_S = 0.2
MAX_FAILED_STARTS = 5  # of one worker in a row, then all end
END_S = 10.0  # for a worker to close, after its grace period
START_AGAIN_S = 0.5  # after a start that failed; twice that after the next


def run_workers(config: ProcessConfig, num_workers: int, on_ready: OnReady) -> None:
    """Run `num_workers` gateways until SIGTERM, SIGHUP or Ctrl-C, which all of them are sent.

    Raises what the first start of one of them raises, and TrtMtpError when one can't be kept up.
    """
    last_admin_port = (config.gateway.admin_port or 0) + num_workers - 1
    if last_admin_port > MAX_PORT:
        raise InputError(
            f"--admin-port {config.gateway.admin_port} is too high for {num_workers} workers: each "
            f"has a port from there on, and {MAX_PORT} is the last there is"
        )
    with (
        _shared_folder() as shared,
        scoreboard_memory(num_workers) as memory,
        reserved_ports(config) as reserved,
    ):
        seats = [Seat(memory, index, num_workers) for index in range(num_workers)]
        configs = [worker_config(reserved, seat, shared) for seat in seats]
        with noted_signals() as seen, _environment(SHARED_FOLDER, str(metrics_folder(shared))):
            workers = [Worker(index, worker) for index, worker in enumerate(configs)]
            try:
                if _wait_ready(workers, seen):
                    first = workers[0].ready or {}
                    on_ready(first | {"workers": [worker.pid for worker in workers]})
                    _watch(workers, seen, shared, Scoreboard(seats[0]))
            finally:
                _end(workers, seen, config.gateway.grace_s)
            if any(worker.exit_code for worker in workers if worker.ready):
                raise TrtMtpError("stopped, and cut answers that were still in flight")


class Worker:
    """One of the processes, whichever has its place now."""

    def __init__(self, index: int, config: ProcessConfig) -> None:
        """Starts it."""
        self.index = index
        self.num_failed_starts = 0
        self.start_again_s: float | None = None  # monotonic time, for one that died
        self._config = config
        self.start()

    def start(self) -> None:
        """Start the process."""
        spawn = multiprocessing.get_context("spawn")  # gRPC doesn't survive a fork
        self.ready: dict[str, Any] | None = None  # what it said when it was
        self.start_again_s = None
        self._messages, sender = spawn.Pipe(duplex=False)
        arguments = (self._config, sender, os.getpid())
        self._process = spawn.Process(target=_work, args=arguments)
        with without_ctrl_c():
            self._process.start()
        sender.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """False once it has ended."""
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end; the second time, not to wait for answers."""
        if self.is_alive:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def listen(self) -> None:
        """Note that it got ready; raises TrtMtpError with why it can't."""
        try:
            if self.ready is None and self._messages.poll():
                message = self._messages.recv()
                if isinstance(message, TrtMtpError):
                    raise message
                self.ready, self.num_failed_starts = message, 0
                log.info("worker %d (pid %d) is ready", self.index, self.pid)
        except EOFError:  # it ended, which `is_alive` tells
            pass

    def note_end(self) -> None:
        """Decide when to start again; raises TrtMtpError when it never gets ready."""
        log.error(
            "worker %d (pid %d) ended with code %s", self.index, self.pid, self._process.exitcode
        )
        wait_s = 0.0
        if self.ready is None:
            self.num_failed_starts += 1
            wait_s = START_AGAIN_S * 2 ** (self.num_failed_starts - 1)
        if self.num_failed_starts >= MAX_FAILED_STARTS:
            raise TrtMtpError(f"worker {self.index} ended {self.num_failed_starts} times at once")
        self.start_again_s = time.monotonic() + wait_s


def worker_config(config: ProcessConfig, seat: Seat, shared: Path) -> ProcessConfig:
    """The settings of a worker, with its own files.

    The first one keeps what was learned where a single process would.
    """
    index = seat.worker
    state = config.state or shared / "state.json"
    states = [state, *(state.with_stem(f"{state.stem}-{i}") for i in range(1, seat.num_workers))]
    gateway, decisions = config.gateway, config.decision_log
    if gateway.admin_port:
        gateway = replace(gateway, admin_port=gateway.admin_port + index)
    return replace(
        config,
        gateway=replace(gateway, seat=seat),
        state=states[index],
        replica=f"{config.replica or default_replica(config.state)}-{index}",
        decision_log=decisions.with_stem(f"{decisions.stem}-{index}") if decisions else None,
    )


def _work(config: ProcessConfig, messages: Connection, parent: int) -> None:
    """A worker's whole life."""
    os.setsid()  # Ctrl-C is for the parent, which passes it on
    die_with_parent(parent)()
    begin_log()
    try:
        run_gateway(config, messages.send)
    except TrtMtpError as error:
        messages.send(error)
        sys.exit(error.exit_code)


def metrics_folder(shared: Path) -> Path:
    """Where the workers' metrics are."""
    return shared / "metrics"


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """A temporary folder for the files that workers share."""
    with tempfile.TemporaryDirectory(prefix="trt-mtp-gateway-") as name:
        metrics_folder(Path(name)).mkdir()
        with held(Path(name)):
            yield Path(name)


def _keep_folder(shared: Path) -> None:
    """Make the shared folder again where something removed it: no worker starts without."""
    folder = metrics_folder(shared)
    if not folder.is_dir():
        with suppress(OSError, TrtMtpError):  # as on a full disk: the next look tries again
            make_again(shared)
            folder.mkdir()
            log.error("%s was removed and is there again; /metrics lacks what was in it", folder)


@contextmanager
def reserved_ports(config: ProcessConfig) -> Iterator[ProcessConfig]:
    """`config` with ports that are free and stay so; raises InputError for one that is not.

    The sockets that hold them don't listen, so the kernel sends them no connections.
    """
    gateway = config.gateway
    held: list[socket.socket] = []
    try:
        port = _reserve(gateway.host, gateway.port, "--port", gateway.is_port_shared, held)
        http_port = gateway.http_port
        if http_port is not None:
            http_port = _reserve(
                gateway.host, http_port, "--http-port", gateway.is_port_shared, held
            )
        yield replace(
            config,
            gateway=replace(gateway, port=port, http_port=http_port, is_port_shared=True),
        )
    finally:
        for holder in held:
            holder.close()


def _reserve(host: str, port: int, option: str, is_shared: bool, held: list[socket.socket]) -> int:
    """Keep `port` for SO_REUSEPORT, and unless it `is_shared`, see first that it is free."""
    try:
        if not is_shared:
            with stream_socket(host) as probe:
                probe.bind((host, port))
        holder = stream_socket(host)
        held.append(holder)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        # with it another user could listen there, while no worker does
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise InputError(
            f"can't listen on {host_and_port(host, port)} ({error.strerror}): choose another with "
            f"{option}"
        ) from None
    return int(holder.getsockname()[1])


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started inside."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _wait_ready(workers: Sequence[Worker], seen: list[int]) -> bool:
    """True when all are ready, false when a signal came first; raises why one is not."""
    while not seen:
        for worker in workers:
            worker.listen()
            if worker.ready is None and not worker.is_alive:
                worker.listen()
                raise TrtMtpError(f"worker {worker.index} ended while starting")
        if all(worker.ready for worker in workers):
            return True
        time.sleep(WATCH_S)
    return False


def _watch(
    workers: Sequence[Worker], seen: list[int], shared: Path, scoreboard: Scoreboard
) -> None:
    """Keep all of them up until a signal comes."""
    from prometheus_client.multiprocess import mark_process_dead

    while not seen:
        _keep_folder(shared)
        for worker in workers:
            try:
                worker.listen()
            except TrtMtpError as error:
                log.error("worker %d: %s", worker.index, error)
            if worker.is_alive:
                continue
            if worker.start_again_s is None:
                scoreboard.clear(worker.index)
                mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
                worker.note_end()
            elif time.monotonic() >= worker.start_again_s:
                worker.start()
        time.sleep(WATCH_S)


def _end(workers: Sequence[Worker], seen: list[int], grace_s: float) -> None:
    """Pass signals on until all have ended; kill those that take longer than they may."""
    num_passed, deadline = 0, time.monotonic() + grace_s + END_S
    while any(worker.is_alive for worker in workers):
        if not time_left(deadline - time.monotonic()):
            for worker in workers:
                worker.kill()
        if num_passed < max(len(seen), 1):
            num_passed = max(len(seen), 1)
            for worker in workers:
                worker.terminate()
        time.sleep(WATCH_S / 4)
