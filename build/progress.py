"""Progress on stderr: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trt_mtp.build.digest import Progress

PLAIN_INTERVAL_S = 10.0


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A function to call with what is done, how much of it, and how much there is, in bytes."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks = {}

        def update(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total)

        yield update


class PlainProgress:
    """A line when something starts, and every ten seconds while it lasts."""

    def __init__(self) -> None:
        """Nothing started yet."""
        self._label = ""
        self._shown_at = 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say so if it is time to."""
        now = time.monotonic()
        if label == self._label and now - self._shown_at < PLAIN_INTERVAL_S:
            return
        percent = f", {100 * done // max(total, 1)} %" if label == self._label else ""
        print(f"{label} ({total / 1e6:,.1f} MB){percent}", file=sys.stderr, flush=True)
        self._label, self._shown_at = label, now
