"""When requests arrive: Poisson, in bursts, or by a trace or a decision log."""

import json
import math
import random
from array import array
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, open_regular

_TRACE_KEYS = ("time_s", "task")
_LENGTHS = ("prompt_tokens", "output_tokens")  # what `trt-mtp plan` reads of a trace, too
_NO_TASK = -1


class Arrival(NamedTuple):
    """One request's arrival, with its task if a trace names it."""

    at: float  # in seconds
    task: str | None = None


def poisson(rate_per_s: float, rng: random.Random) -> Iterator[Arrival]:
    """Arrivals of a Poisson process."""
    now = 0.0
    while True:
        now += rng.expovariate(rate_per_s)
        yield Arrival(now)


def bursts(rate_per_s: float, rng: random.Random, period_s: float = 60.0) -> Iterator[Arrival]:
    """Poisson arrivals at 1.75 times the rate for half of each period, and at 0.25 for the rest."""
    now = 0.0
    while True:
        factor = 1.75 if now % period_s < period_s / 2 else 0.25
        now += rng.expovariate(rate_per_s * factor)
        yield Arrival(now)


class Trace:
    """The arrivals in a file, by time, the first one at 0.

    A line is a time in seconds, an object with `time_s` and optionally `task`, or a record of a
    decision log. Times count from any origin and in any order. Memory is nine bytes a line.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; raises InputError with the line that is wrong."""
        times, tasks = array("d"), array("b")
        for arrival in _read(path):
            times.append(arrival.at)
            tasks.append(_NO_TASK if arrival.task is None else TASKS.index(arrival.task))
        if not times:
            raise InputError(f"{path} holds no arrival: expected a time in seconds on each line")
        order = np.argsort(np.frombuffer(times), kind="stable")
        self._times = np.frombuffer(times)[order] - min(times)
        self._tasks = np.frombuffer(tasks, dtype=np.int8)[order]

    def __len__(self) -> int:
        return len(self._times)

    def __iter__(self) -> Iterator[Arrival]:
        for at, task in zip(self._times, self._tasks, strict=True):
            yield Arrival(float(at), None if task == _NO_TASK else TASKS[task])


def _read(path: Path) -> Iterator[Arrival]:
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not _is_cut(line):
                    yield _arrival(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} can't be read: it is not UTF-8 text") from None


def _is_cut(line: str) -> bool:
    """True for a log's last line that a kill cut off."""
    return line.startswith("{") and not line.endswith(("}", "\n"))


def _arrival(line: str, where: str) -> Arrival:
    try:
        value = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return _from_record(value, where)
    return Arrival(_seconds(value, f"{where} is {line.strip()[:80]!r}"))


def _from_record(record: dict[str, Any], where: str) -> Arrival:
    if isinstance(record.get("decision"), dict):
        decision = record["decision"]
        record = {"time_s": decision.get("now_s"), "task": decision.get("task")}
    for key in record:
        if key not in (*_TRACE_KEYS, *_LENGTHS):
            raise InputError(
                f"{where}: unknown key {key[:80]!r}{nearest(key[:80], _TRACE_KEYS)} "
                f"(known: {', '.join(_TRACE_KEYS)}, or a decision log's record)"
            )
    task = record.get("task")
    if task is not None and task not in TASKS:
        raise InputError(f"{where}: task is {task!r:.80}{nearest(str(task)[:80], TASKS)}")
    time_s = record.get("time_s")
    return Arrival(_seconds(time_s, f"{where}: time_s is {time_s!r:.80}"), task)


def _seconds(value: Any, what: str) -> float:
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise InputError(f"{what}: expected a time in seconds that is not negative")
    return value
