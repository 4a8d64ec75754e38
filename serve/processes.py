"""Child processes that end with us, and signals that end us in order."""

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trt_mtp.errors import InputError

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(parent: int | None = None) -> Callable[[], None]:
    """A `preexec_fn` that sends SIGTERM to the child when the thread that started it is gone.

    A child calls it itself with the process id of its `parent`.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    parent = parent or os.getpid()

    def set_death_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


def children(pid: int) -> list[int]:
    """The living children of process `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            status = _status(int(entry.name))
            if status is not None and status[1] == pid and status[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    """False for a process that has ended, reaped or not."""
    status = _status(pid)
    return status is not None and status[0] != "Z"


def _status(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process, from proc(5) /proc/PID/stat."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: shared pages count by the share of those who map them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handlers(interrupt):
        yield


@contextmanager
def postponed() -> Iterator[None]:
    """A signal that would end us inside does so at the end: for imports, which it would break."""
    seen: list[int] = []
    with _handlers(lambda number, frame: seen.append(number)):
        yield
    if seen:
        raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing that ends a program interrupts what is inside: it is the cleaning up."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def free_ports(wanted: dict[str, int]) -> dict[str, int]:
    """A port of 127.0.0.1 for each name; 0 becomes one that is free.

    Raises InputError when a wanted one is in use. The names are those of the options.
    """
    sockets: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for name, port in wanted.items():
            probe = socket.socket()
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise InputError(
                    f"port {port} can't be used ({error.strerror}); "
                    f"choose another with --{name}-port, or 0 for any"
                ) from None
            ports[name] = probe.getsockname()[1]
    finally:
        for probe in sockets:
            probe.close()
    return ports
