"""What became of the streams: totals, and what happened during each kind of fault."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.client import Answer, End

MAX_LOSSES = 20
AFTERMATH_S = 5.0  # in which a fault may be why a server dies
TOTALS = ("started", "intact", "failed_over", "resumed", "refused", "lost", "left")
COLUMNS = ("faults", "streams", "failed_over", "resumed", "refused", "lost")


@dataclass(slots=True)
class Tally:
    """Counts of faults and streams.

    started = intact + refused + lost + left. `failed_over` and `resumed` streams are among those
    that are counted by their end: the gateway took them to another variant, or the gateway itself
    died and the client went on with the tokens that it had.
    """

    total: Counter[str] = field(default_factory=Counter)
    during: dict[str, Counter[str]] = field(default_factory=dict)  # streams that met the fault
    losses: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    unfinished: list[str] = field(default_factory=list)  # what was waited for, without an end
    _periods: list[tuple[str, float, float]] = field(default_factory=list)  # of faults, monotonic
    _active: Counter[str] = field(default_factory=Counter)
    _open: set["Stream"] = field(default_factory=set)

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """A fault lasts as long as this."""
        self.total["faults"] += 1
        self.during.setdefault(name, Counter())["faults"] += 1
        self._active[name] += 1
        for stream in self._open:
            stream.met.add(name)
        start = time.monotonic()
        try:
            yield
        except TimeoutError as error:
            self.unfinished.append(f"{error} (during {name})")
        finally:
            self._active[name] -= 1
            self._periods.append((name, start, time.monotonic()))

    def faults_before(self, at: float) -> list[str]:
        """The faults that went on at a time, or within AFTERMATH_S before."""
        found = {n for n, start, end in self._periods if start <= at <= end + AFTERMATH_S}
        return sorted(found | {name for name, count in self._active.items() if count})

    def started(self) -> "Stream":
        """A client asks."""
        self.total["started"] += 1
        stream = Stream({name for name, count in self._active.items() if count})
        self._open.add(stream)
        return stream

    def ended(self, stream: "Stream", end: End, answer: Answer) -> None:
        """A stream is over."""
        self._open.remove(stream)
        what = Counter({end.value: 1})
        what["failed_over"] = int(answer.is_failed_over)
        what["resumed"] = int(answer.num_resumed > 0)
        self.total += what
        for name in stream.met:
            self.during[name] += Counter(streams=1) + what
        if end is End.REFUSED:
            self.refusals[answer.error] += 1
        if end is End.LOST and len(self.losses) < MAX_LOSSES:
            self.losses.append(f"{answer.error} (during {', '.join(sorted(stream.met)) or '-'})")

    def to_json(self) -> dict[str, Any]:
        """All counts with stable keys."""
        return {
            **{name: self.total[name] for name in ("faults", *TOTALS, "stuck")},
            "by_fault": {
                name: {column: counts[column] for column in COLUMNS}
                for name, counts in sorted(self.during.items())
            },
            "losses": self.losses,
            "unfinished": self.unfinished,
            "refusals": dict(self.refusals),
        }


@dataclass(slots=True, eq=False)
class Stream:
    """A stream that is going on, and the faults that it met."""

    met: set[str]


def table(report: dict[str, Any]) -> str:
    """The report of a run for people."""
    widths = [max(len(name) for name in report["by_fault"]), *(len(c) + 2 for c in COLUMNS)]
    rows = [("fault", *COLUMNS)]
    rows += [
        (name, *(f"{counts[column]:,}" for column in COLUMNS))
        for name, counts in report["by_fault"].items()
    ]
    lines = [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    summary = ", ".join(f"{name.replace('_', ' ')} {report[name]:,}" for name in TOTALS)
    end = (
        f"{report['faults']:,} faults in {report['duration_s']:.0f} s, seed {report['seed']}; "
        f"{report['triton_crashes']} crashes of Triton that no fault meant, "
        f"{len(report['unexplained_crashes'])} of them unexplained; "
        f"{report['stuck']} requests left running; {len(report['unfinished'])} waits without an end"
    )
    crashes = [f"crash: {text}" for text in report["crashes"]]
    refusals = [f"refused {count:,} times: {text}" for text, count in report["refusals"].items()]
    return "\n".join(
        [
            *lines,
            "",
            f"streams: {summary}",
            end,
            *refusals,
            *crashes,
            *report["losses"],
            *report["unfinished"],
        ]
    )
