"""Child processes that end with us, and signals that end us in order."""

import errno
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.interrupts import break_off, interrupt, note_interrupt, time_left
from trt_mtp.parent import die_with_parent

LOCAL = "127.0.0.1"
LOWEST_PORT = 10_240  # of those that are taken where any will do
NUM_TRIED = 64
KILL_S = 10.0  # for what was killed to be gone; the kernel may finish something first
LOOK_S = 0.01


def shielded(parent: int | None = None) -> Callable[[], None]:
    """A `preexec_fn` for a program that we alone end, and all that it starts.

    SIGTERM and SIGHUP don't reach it: systemd sends them to every process of a service, and answers
    are let finish by us. The kernel sends it SIGINT when the thread that started it is gone.
    """
    set_death_signal = die_with_parent(parent, signal.SIGINT)

    def shield() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
        set_death_signal()

    return shield


def children(pid: int) -> list[int]:
    """The living children of process `pid`."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            status = _status(int(entry.name))
            if status is not None and status[1] == pid and status[0] != "Z":
                pids.append(int(entry.name))
    return sorted(pids)


def descendants(pid: int) -> set[int]:
    """All living processes below process `pid`."""
    below = set(children(pid))
    return below.union(*(descendants(child) for child in below))


def is_alive(pid: int) -> bool:
    """False for a process that has ended, reaped or not."""
    status = _status(pid)
    return status is not None and status[0] != "Z"


def started_at(pid: int) -> int | None:
    """When a living process started, in clock ticks since the boot; None for one that has ended.

    With its id, that tells it from a later process of the same id.
    """
    status = _status(pid)
    return None if status is None or status[0] in "ZX" else status[2]


def _status(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent and start of a process, from /proc/PID/stat, see proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return fields[0], int(fields[1]), int(fields[22 - 3])


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: a page shared by n processes counts 1 / n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def has_ended(process: "subprocess.Popen[bytes]", full_s: float) -> bool:
    """Wait for the end of a child, `full_s` at most; a Ctrl-C may leave less."""
    deadline = time.monotonic() + full_s
    while process.poll() is None:
        if not time_left(deadline - time.monotonic()):
            return False
        time.sleep(LOOK_S)
    return True


def kill_group(leader: "subprocess.Popen[bytes]", others: Sequence[int] = ()) -> None:
    """Kill the process group of `leader`; wait until the leader and its `others` are gone.

    Raises TrtMtpError if one is still there after KILL_S.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_S
    while leader.poll() is None or any(is_alive(pid) for pid in others):
        if time.monotonic() > deadline:
            left = [pid for pid in (leader.pid, *others) if is_alive(pid)]
            raise TrtMtpError(
                f"process {left[0]} was killed {KILL_S:.0f} s ago and is still there: it waits in "
                f"the kernel for a device or a disk; see /proc/{left[0]}/stack"
            )
        time.sleep(LOOK_S)


def end_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM and SIGHUP; without SIGHUP for who starts us with it ignored, as `nohup` does."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP break off what is inside, like Ctrl-C.

    After Ctrl-C, clean-ups have less time (see `time_left`). A SIGHUP that is ignored stays so.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        break_off()

    with _handlers(interrupt, terminate):
        yield


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that would end this process, as they come in; they do nothing else."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if number == signal.SIGINT:
            note_interrupt()

    with _handlers(note, note):
        yield seen


@contextmanager
def postponed() -> Iterator[None]:
    """Delay signals until the end: for imports, which KeyboardInterrupt would break."""
    with noted_signals() as seen:
        yield
    if seen:
        raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Protect a clean-up from signals; after Ctrl-C it has less time, see `time_left`."""
    with _handlers(lambda number, frame: note_interrupt(), signal.SIG_IGN):
        yield


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, because this process ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


Handler = Callable[[int, FrameType | None], None] | signal.Handlers


@contextmanager
def _handlers(of_interrupt: Handler, of_end: Handler) -> Iterator[None]:
    """Handlers of Ctrl-C, and of `end_signals`."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return
    wanted = {signal.SIGINT: of_interrupt} | dict.fromkeys(end_signals(), of_end)
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def free_ports(wanted: dict[str, int], hosts: Mapping[str, str] | None = None) -> dict[str, int]:
    """A port for each name; 0 becomes a free port. `hosts` has those not of 127.0.0.1, by name.

    Raises InputError if a wanted port is in use. The names are those of the options.
    """
    sockets: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for name, port in wanted.items():
            host = (hosts or {}).get(name, LOCAL)
            where = "" if host == LOCAL else f" of {host}"
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if port:
                    probe.bind((host, port))
                else:
                    _bind_to_any(probe, host, ports.values())
            except OSError as error:
                raise InputError(
                    f"port {port}{where} can't be used ({error.strerror}); "
                    f"choose another with --{name}-port, or 0 for any"
                ) from None
            ports[name] = probe.getsockname()[1]
    finally:
        for probe in sockets:
            probe.close()
    return ports


def _bind_to_any(probe: socket.socket, host: str, taken: Collection[int]) -> None:
    """Bind to a free port, one that no connection is given: it is free again after a restart.

    None of `taken`, which others are bound to: until one of them listens the kernel allows that.
    Raises OSError where there is none.
    """
    above = _first_of_connections()
    for _ in range(NUM_TRIED if above > LOWEST_PORT else 0):
        port = LOWEST_PORT + secrets.randbelow(above - LOWEST_PORT)
        if port in taken:
            continue
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    probe.bind((host, 0))


def _first_of_connections() -> int:
    """The lowest port that the kernel gives to connections, see ip(7)."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
