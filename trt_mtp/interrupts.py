"""Ctrl-C ends a command in order within five seconds, and a second one ends it at once."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

IN_ORDER_S = 2.5  # for the clean-ups after the first Ctrl-C; after another one they have none
LEAVE_S = 1.5  # after that time, until what still runs is killed
LOOK_S = 0.05
EXIT_CODE = 130

Result = TypeVar("Result")


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
    """The handler of SIGINT: breaks off what runs, and limits the time that is left."""
    _ending.note()
    break_off()


def break_off() -> None:
    """For handlers of signals: raise KeyboardInterrupt here, or at the end of a `run_async`."""
    if _cancel_running:
        _cancel_running[-1]()
    else:
        raise KeyboardInterrupt


_cancel_running: list[Callable[[], None]] = []  # of the main thread, where handlers run


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, but a signal that is to `break_off` cancels `main`.

    What a handler raises comes out of what the loop happens to be at, and if that is a callback of
    gRPC, it is printed and lost.
    """
    import asyncio

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(main)
    runner, is_broken_off = asyncio.Runner(), False
    loop = runner.get_loop()
    task: asyncio.Task[Result] = loop.create_task(main)

    def cancel() -> None:
        nonlocal is_broken_off
        is_broken_off = True
        with suppress(RuntimeError):  # closed a moment ago
            loop.call_soon_threadsafe(task.cancel)

    async def over() -> None:
        await asyncio.wait([task])

    _cancel_running.append(cancel)
    try:
        with runner:
            runner.run(over())
    finally:
        _cancel_running.remove(cancel)
    if is_broken_off:
        raise KeyboardInterrupt from None if task.cancelled() else task.exception()
    return task.result()


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
