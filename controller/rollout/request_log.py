"""The request log of a rollout: decision logs, read as they grow, in windows of time, for gates."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.controller.gateway.canary.traffic import CANARY, STABLE
from trt_mtp.controller.outcome import REFUSED
from trt_mtp.controller.rollout.gates import GateKeeper, Requests
from trt_mtp.controller.rollout.session_cap import SessionCap
from trt_mtp.controller.rollout.spec import Gates
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.files import open_regular

MAX_READ = 1 << 28  # bytes of a log at once
ENDED_BY_CLIENTS = ("cancelled", REFUSED)  # which says nothing of a variant
LOG_DELAY_S = 1.0  # most time from a request's end to its line in the log


class FinishedRequest(NamedTuple):
    """One request as the gates see it."""

    ended_at: float  # Unix time
    side: str
    variant: str
    task: int
    is_error: bool
    ttft_s: float
    duration_s: float
    num_tokens: int
    num_steps: int
    accepted: tuple[int, ...]  # per draft position
    session_id: str | None = None
    is_copy: bool = False  # of a live request, see shadow.py
    is_equal: bool | None = None  # a copy's greedy answer equals the live one; None: not greedy


class LogTail:
    """Reads whole lines that are appended to a file, also after it is rotated or emptied."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read: dict[int, int] = {}  # inode -> bytes

    def new_lines(self) -> Iterator[bytes]:
        """Lines that were appended since the last call, oldest first."""
        rotated = sorted(self._path.parent.glob(f"{self._path.name}.[0-9]*"), reverse=True)
        for file in (*rotated, self._path):
            try:
                with open_regular(file) as opened:
                    status = os.fstat(opened.fileno())
                    inode = status.st_ino
                    if status.st_size < self._num_read.get(inode, 0):
                        del self._num_read[inode]  # emptied, or another file with its number
                    opened.seek(self._num_read.get(inode, 0))
                    data = opened.read(MAX_READ)
            except (OSError, InputError):
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._num_read[inode] = self._num_read.get(inode, 0) + len(whole)
            yield from whole.splitlines()


def parse_line(line: bytes) -> FinishedRequest | None:
    """The request in a line of a decision log.

    None if no rollout routed it, or if its client ended it, by leaving or by what is wrong in it.
    """
    try:
        record = json.loads(line)
        decision, outcome = record["decision"], record["outcome"]
        if decision.get("side") not in (STABLE, CANARY):
            return None
        if outcome["finish_reason"] in ENDED_BY_CLIENTS:
            return None
        shadow = record.get("shadow")
        return FinishedRequest(
            ended_at=float(decision["now_s"]) + float(outcome["duration_s"]),
            side=decision["side"],
            variant=decision["variant"],
            task=TASKS.index(decision["task"]),
            is_error=outcome["finish_reason"] == "error",
            ttft_s=float(outcome["ttft_s"] or "nan"),
            duration_s=float(outcome["duration_s"]),
            num_tokens=int(outcome["num_output_tokens"]),
            num_steps=int(outcome["num_steps"]),
            accepted=tuple(outcome["accepted_per_position"]),
            session_id=decision.get("session_id"),
            is_copy=shadow is not None,
            is_equal=shadow["is_equal"] if shadow else None,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


class RequestLog:
    """Feeds the gates from logs. Its state follows from the logs alone, also after a crash."""

    def __init__(self, logs: Iterable[Path], gates: Gates, started_at: float) -> None:
        """Skips requests that ended before the rollout's start (Unix time)."""
        self.keeper = GateKeeper(gates)
        self.num_canary = 0  # the canary's requests, including those of open windows
        self.num_canary_in_windows = 0  # that have ended; the keeper's are those that it judges
        self.num_compared = self.num_diverged = 0  # greedy answers of copies
        self._tails = [LogTail(path) for path in logs]
        self._cap = SessionCap()
        self._started_at, self._window_s = started_at, gates.window_s
        self._open: dict[int, list[FinishedRequest]] = {}  # by number of the window

    def read(self, now: float) -> None:
        """Read new lines, and pass windows that ended before `now` (Unix time) to the gates."""
        for tail in self._tails:
            for request in filter(None, map(parse_line, tail.new_lines())):
                if request.ended_at >= self._started_at:
                    self._add(request)
        for window in sorted(self._open):
            if (window + 1) * self._window_s + LOG_DELAY_S <= now:
                self._close(self._open.pop(window))

    def _add(self, request: FinishedRequest) -> None:
        self.num_canary += request.side == CANARY
        self.num_compared += request.is_equal is not None
        self.num_diverged += request.is_equal is False
        self._open.setdefault(int(request.ended_at // self._window_s), []).append(request)

    def _close(self, requests: list[FinishedRequest]) -> None:
        self.num_canary_in_windows += sum(request.side == CANARY for request in requests)
        ordered = sorted(requests, key=lambda request: request.ended_at)
        judged = [request for request in ordered if self._cap.admits(request.session_id)]
        canary = [request for request in judged if request.side == CANARY]
        stable = [request for request in judged if request.side == STABLE]
        lengths = [max((len(r.accepted) for r in side), default=0) for side in (canary, stable)]
        common = min(lengths)
        self.keeper.add(*(Requests.of(_row(r, common) for r in side) for side in (canary, stable)))

    def summary(self) -> dict[str, Any]:
        """The gates that have seen requests, for the history."""
        results = self.keeper.results()
        return {
            "num_canary": self.num_canary,
            "num_judged": self.keeper.num_canary,
            "num_compared": self.num_compared,
            "num_diverged": self.num_diverged,
            "gates": [result._asdict() for result in results],
            "failed": [result.sentence() for result in results if result.is_failed],
        }


def _row(request: FinishedRequest, common: int) -> tuple[float, ...]:
    """The columns of Requests; the acceptance length counts only the first `common` drafts.

    It is NaN if a request drafted less, so that sides of different draft lengths are compared over
    the drafts that both make.
    """
    tokens, steps = request.num_tokens, request.num_steps
    after_first = request.duration_s - request.ttft_s
    is_timed = not request.is_copy and request.duration_s > 0  # a copy ran at another load
    is_answered = not request.is_error and tokens > 0 and is_timed
    drafts = 0 < common <= len(request.accepted) and steps > 0
    return (
        request.task,
        request.is_error,
        request.ttft_s if is_timed else float("nan"),
        after_first / (tokens - 1) if is_answered and tokens > 1 else float("nan"),
        tokens / request.duration_s if is_answered else float("nan"),
        1 + sum(request.accepted[:common]) / steps if drafts else float("nan"),
    )
