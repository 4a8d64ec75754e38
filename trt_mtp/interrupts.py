"""Ctrl-C ends a command in order within five seconds, and a second one ends it at once."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

IN_ORDER_S = 2.5  # for the clean-ups after the first Ctrl-C; after another one they have none
LEAVE_S = 1.5  # after that time, until what still runs is killed
LOOK_S = 0.05
EXIT_CODE = 130


class _Ending:
    """Until when the clean-ups must be done; never before the first Ctrl-C."""

    def __init__(self) -> None:
        self.num_interrupts = 0
        self.by = math.inf  # monotonic time

    def note(self) -> None:
        """A Ctrl-C came. Takes no lock: another one may interrupt this."""
        self.num_interrupts += 1
        self.by = time.monotonic() + (IN_ORDER_S if self.num_interrupts == 1 else 0.0)
        if self.num_interrupts == 1:
            threading.Thread(target=self._enforce, name="ctrl-c", daemon=True).start()

    def _enforce(self) -> None:
        while time.monotonic() < self.by + LEAVE_S:
            time.sleep(LOOK_S)
        end_now()


_ending = _Ending()


def note_interrupt() -> None:
    """For a handler of SIGINT that doesn't raise: from now on the time is limited."""
    _ending.note()


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT: raises KeyboardInterrupt, and limits the time that is left."""
    _ending.note()
    raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Did a Ctrl-C come? What fails after it is its doing, as an import that it breaks off."""
    return _ending.num_interrupts > 0


def time_left(full_s: float) -> float:
    """Seconds that a clean-up may take: `full_s`, or what a Ctrl-C has left of it."""
    return max(0.0, min(full_s, _ending.by - time.monotonic()))


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Ctrl-C inside ends this process and all below it in time, whatever hangs."""
    is_main = threading.current_thread() is threading.main_thread()
    # who starts us with SIGINT ignored, as `nohup` scripts do, wants it ignored
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if _ending.num_interrupts:  # the handler stays, for the interpreter's exit as well
            _kill_all_below()  # of a clean-up that another Ctrl-C broke off
        else:
            signal.signal(signal.SIGINT, before)


def end_now() -> None:
    """Kill all processes below this one, and end it."""
    _kill_all_below()
    os._exit(EXIT_CODE)


def _kill_all_below() -> None:
    from trt_mtp.serve.processes import descendants

    for pid in descendants(os.getpid()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
