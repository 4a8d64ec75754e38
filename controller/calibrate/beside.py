"""Asynchronous work in its own thread, while the calling thread checks a server."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from trt_mtp.interrupts import time_left

CHECK_S = 1.0
LEAVE_S = 4.0  # for work that is cancelled

Result = TypeVar("Result")


def run_beside(work: Coroutine[Any, Any, Result], check: Callable[[], None]) -> Result:
    """The result of `work`; `check` is called again and again from this thread.

    What `check` raises, or Ctrl-C, cancels the work, which has LEAVE_S to end. The kernel ends a
    server when the thread that started it is gone: it is this one that must live on.
    """
    runner, outcome = asyncio.Runner(), Future[Result]()
    loop = runner.get_loop()
    task = loop.create_task(work)

    def run() -> None:
        try:
            with runner:
                outcome.set_result(loop.run_until_complete(task))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="measuring", daemon=True)
    thread.start()
    try:
        while not wait([outcome], timeout=CHECK_S).done:  # the work's own waits end it
            check()
        return outcome.result()
    finally:
        with contextlib.suppress(RuntimeError):  # the work is over, and its loop closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join(time_left(LEAVE_S))
