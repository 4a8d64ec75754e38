"""A process that ends with the one that started it, also while it is stopped."""

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(
    parent: int | None = None, number: signal.Signals = signal.SIGTERM
) -> Callable[[], None]:
    """A `preexec_fn` that sends the child a signal when the thread that started it is gone.

    A child calls it itself with the process id of its `parent`.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    parent = parent or os.getpid()

    def set_death_signal() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal
