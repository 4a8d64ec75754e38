"""Who holds a rollout's lock, and whether that process still lives; no clock of the day decides."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from trt_mtp.serve.processes import started_at

BEAT_S = 5.0  # between two signs of life
SILENT_S = 30.0  # without one, by the clock of the process that waits for it


class Holder(NamedTuple):
    """A process with the lock, as the state file has it."""

    owner: str
    host: str
    pid: int
    machine: str  # where `pid` means something: a boot of a kernel, and a namespace of processes
    started: int  # when it started, in clock ticks since that boot
    beat: int  # counts up while it lives

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether the process is, or was, one that we can see."""
        return self.machine == this_machine()

    @property
    def is_alive(self) -> bool:
        """Whether the process lives; only for one that is here."""
        return started_at(self.pid) == self.started


def this_process(owner: str) -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return Holder(owner, os.uname().nodename, pid, this_machine(), started_at(pid) or 0, 0)


def this_machine() -> str:
    """What differs between machines, between boots of one, and between its containers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


class BeatWatch:
    """Watches the signs of life of holders elsewhere."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}  # owner -> the beat that was seen first
        self._last: dict[str, tuple[int, float]] = {}  # owner -> its last beat, and since when

    def is_silent(self, holder: Holder) -> bool:
        """True when no sign of life came for SILENT_S; the first look begins the time."""
        beat, since = self._last.get(holder.owner, (-1, 0.0))
        if beat == holder.beat:
            return time.monotonic() - since >= SILENT_S
        self._last[holder.owner] = (holder.beat, time.monotonic())
        return False

    def has_moved(self, holder: Holder) -> bool:
        """True when a sign of life came since the first look."""
        return self._first.setdefault(holder.owner, holder.beat) != holder.beat
