"""Progress on stderr: a bar on a terminal if rich is installed, lines if not."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from trt_mtp.extras import is_installed
from trt_mtp.printable import printable
from trt_mtp.terminal import folded

PLAIN_INTERVAL_S = 10.0


class Meter(Protocol):
    """Where work says how far it is."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def update(self, label: str, done: float, total: float, num_answers: int | None = None) -> None:
        """What is done now, how much of all is done, and how many answers came so far.

        Without `num_answers` the pace is that of `done`.
        """


@dataclass(slots=True)
class Pace:
    """How fast work goes, since its first update: what came before it does not count."""

    rate: float = 0.0  # of answers, or of what is done, a second
    left_s: float = 0.0  # as far as one can tell
    _started_at: float = 0.0
    _latest: float = math.inf  # what was done then; when it falls, other work begins
    _before: tuple[float, float] = (0.0, 0.0)  # what was done then: a run may continue another
    _label: str = ""

    def update(self, now: float, label: str, done: float, total: float, count: float) -> bool:
        """Whether other work begins; `now` is in seconds."""
        begins = done < self._latest or (done == 0 and label != self._label)
        self._label = label
        if begins:
            self._started_at, self._before = now, (done, count)
        self._latest = done
        elapsed = max(now - self._started_at, 1e-9)
        self.rate = (count - self._before[1]) / elapsed
        self.left_s = (total - done) * elapsed / max(done - self._before[0], 1e-9)
        return begins


@contextmanager
def shown(unit: str, scale: float = 1.0) -> Iterator[Meter]:
    """A meter on stderr, which shows `done` and `total` divided by `scale`, in `unit`."""
    if not (sys.stderr.isatty() and is_installed("rich")):
        yield PlainMeter(unit, scale)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1.0, rate="")
        pace = Pace()

        class Bar:
            def say(self, text: str) -> None:
                console.print(folded(text, console.width), markup=False)

            def update(
                self, label: str, done: float, total: float, num_answers: int | None = None
            ) -> None:
                done, total = done / scale, total / scale
                count = done if num_answers is None else num_answers
                if pace.update(time.monotonic(), label, done, total, count):
                    bars.reset(task)
                rate = _rate(pace, unit, num_answers)
                bars.update(task, description=label, completed=done, total=total, rate=rate)

        yield Bar()


class PlainMeter:
    """A line when work begins, and every ten seconds while it lasts."""

    def __init__(self, unit: str, scale: float) -> None:
        """Nothing is done yet; what is shown is in `unit`, `done` and `total` over `scale`."""
        self._unit, self._scale = unit, scale
        self._pace = Pace()
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        """Print it."""
        print(printable(text), file=sys.stderr, flush=True)

    def update(self, label: str, done: float, total: float, num_answers: int | None = None) -> None:
        """Say so if it is time to."""
        now = time.monotonic()
        done, total = done / self._scale, total / self._scale
        count = done if num_answers is None else num_answers
        begins = self._pace.update(now, label, done, total, count)
        if not begins and now - self._shown_at < PLAIN_INTERVAL_S:
            return
        self._shown_at = now
        text = f"{label}: {done:,.0f} of {total:,.0f} {self._unit}"
        if not begins:
            rate = _rate(self._pace, self._unit, num_answers)
            text += f", {rate}, about {self._pace.left_s:.0f} s left"
        self.say(text)


def _rate(pace: Pace, unit: str, num_answers: int | None) -> str:
    return f"{pace.rate:,.1f} {unit if num_answers is None else 'answers'}/s"
