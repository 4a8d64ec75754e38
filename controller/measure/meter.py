"""Progress of a measurement on stderr: a bar with rate and time left, plain lines otherwise."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL_S = 10.0


class Meter(Protocol):
    """Where a measurement says how far it is."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def update(self, label: str, done: float, total: float, num_answers: int) -> None:
        """What is measured now, how much of all is done, and how many answers came so far."""


class Quiet:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def update(self, label: str, done: float, total: float, num_answers: int) -> None:
        """Show nothing."""


@contextmanager
def shown(unit: str) -> Iterator[Meter]:
    """A meter on stderr; `done` and `total` are in `unit`, "s" for instance."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]:.1f} answers/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=1.0, unit=unit, rate=0.0)
        started = shown_at = 0.0  # at the first update: building and serving don't count
        latest = math.inf  # what was done then; when it falls, another measurement begins
        before = (0.0, 0)  # what was done then: a run may go on with an earlier one

        class Shown:
            def say(self, text: str) -> None:
                console.print(text, markup=False)

            def update(self, label: str, done: float, total: float, num_answers: int) -> None:
                nonlocal started, shown_at, latest, before
                now = time.monotonic()
                if done < latest:
                    started = shown_at = now
                    before = (done, num_answers)
                latest = done
                elapsed = max(now - started, 1e-9)
                rate = (num_answers - before[1]) / elapsed
                bars.update(task, description=label, completed=done, total=total, rate=rate)
                if not console.is_terminal and now - shown_at >= PLAIN_INTERVAL_S:
                    shown_at = now
                    left = (total - done) * elapsed / max(done - before[0], 1e-9)
                    self.say(
                        f"{label}: {done:.0f} of {total:.0f} {unit}, {num_answers} answers, "
                        f"{rate:.1f} a second, about {left:.0f} s left"
                    )

        yield Shown()
