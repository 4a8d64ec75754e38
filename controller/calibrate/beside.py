"""Work in its own thread, while the calling thread checks a server."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from trt_mtp.interrupts import time_left

CHECK_S = 0.5
LEAVE_S = 4.0  # for work that is told to end

Result = TypeVar("Result")


def beside(
    work: Callable[[], Result], check: Callable[[], None], stop: Callable[[], None]
) -> Result:
    """The result of `work`; `check` is called again and again from this thread.

    What `check` raises, or Ctrl-C, ends the wait; `stop` tells the work to end, which has LEAVE_S
    for it. The kernel ends a server with the thread that started it: it is this one that must live
    on.
    """
    outcome = Future[Result]()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="beside the server", daemon=True)
    thread.start()
    try:
        while not wait([outcome], timeout=CHECK_S).done:  # the work's own waits end it
            check()
        return outcome.result()
    finally:
        stop()
        thread.join(time_left(LEAVE_S))


def run_beside(work: Coroutine[Any, Any, Result], check: Callable[[], None]) -> Result:
    """The result of asynchronous `work`, which is cancelled where `check` raises."""
    runner = asyncio.Runner()
    loop = runner.get_loop()
    task = loop.create_task(work)

    def run() -> Result:
        with runner:
            return loop.run_until_complete(task)

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # the work is over, and its loop closed
            loop.call_soon_threadsafe(task.cancel)

    return beside(run, check, stop)
