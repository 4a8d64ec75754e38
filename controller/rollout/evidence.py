"""Finished requests from the gateways' decision logs, in windows of time, for the gates."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.controller.gateway.traffic import CANARY, STABLE
from trt_mtp.controller.rollout.gates import GateKeeper, Requests
from trt_mtp.controller.rollout.spec import Gates
from trt_mtp.controller.tasks import TASKS

LATE_S = 1.0  # a line is in the log this long after its request ended, at the latest


class Finished(NamedTuple):
    """One request as the gates see it."""

    at_s: float  # when it ended
    side: str
    variant: str
    task: int
    is_error: bool
    ttft_s: float
    duration_s: float
    num_tokens: int
    num_steps: int
    accepted: tuple[int, ...]  # per draft position
    is_copy: bool = False  # of a live request, see shadow.py
    is_equal: bool | None = None  # a copy's greedy answer to the live one


class LogReader:
    """Reads what is appended to a file, across its rotation; whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at: dict[int, int] = {}  # inode -> bytes read

    def lines(self) -> Iterator[bytes]:
        """What is there and was not read yet, oldest first."""
        rotated = sorted(self._path.parent.glob(f"{self._path.name}.[0-9]*"), reverse=True)
        for file in (*rotated, self._path):
            try:
                with file.open("rb") as opened:
                    inode = file.stat().st_ino
                    opened.seek(self._at.get(inode, 0))
                    data = opened.read()
            except OSError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._at[inode] = self._at.get(inode, 0) + len(whole)
            yield from whole.splitlines()


def finished(line: bytes) -> Finished | None:
    """The request that a line of a decision log tells of; None where it is none of a rollout."""
    try:
        record = json.loads(line)
        decision, outcome = record["decision"], record["outcome"]
        if decision.get("side") not in (STABLE, CANARY) or outcome["finish_reason"] == "cancelled":
            return None
        shadow = record.get("shadow")
        return Finished(
            at_s=float(decision["now_s"]) + float(outcome["duration_s"]),
            side=decision["side"],
            variant=decision["variant"],
            task=TASKS.index(decision["task"]),
            is_error=outcome["finish_reason"] == "error",
            ttft_s=float(outcome["ttft_s"] or "nan"),
            duration_s=float(outcome["duration_s"]),
            num_tokens=int(outcome["num_output_tokens"]),
            num_steps=int(outcome["num_steps"]),
            accepted=tuple(outcome["accepted_per_position"]),
            is_copy=shadow is not None,
            is_equal=shadow["is_equal"] if shadow else None,
        )
    except (ValueError, KeyError, TypeError):
        return None


class EvidenceReader:
    """Feeds the gates from logs. What it says follows from the logs alone, also after a crash."""

    def __init__(self, logs: Iterable[Path], gates: Gates, since_s: float) -> None:
        """Requests that ended before `since_s` are not of this rollout."""
        self.keeper = GateKeeper(gates)
        self.num_seen = 0  # the canary's requests, those of open windows too
        self.num_compared = self.num_diverged = 0  # greedy answers of copies
        self._readers = [LogReader(path) for path in logs]
        self._since_s, self._window_s = since_s, gates.window_s
        self._open: dict[int, list[Finished]] = {}

    def read(self, now_s: float) -> None:
        """Take in what the logs have, and judge the windows that are over at `now_s`."""
        for reader in self._readers:
            for line in reader.lines():
                request = finished(line)
                if request is not None and request.at_s >= self._since_s:
                    self.num_seen += request.side == CANARY
                    self.num_compared += request.is_equal is not None
                    self.num_diverged += request.is_equal is False
                    self._open.setdefault(int(request.at_s // self._window_s), []).append(request)
        for window in sorted(self._open):
            if (window + 1) * self._window_s + LATE_S <= now_s:
                self._judge(self._open.pop(window))

    def _judge(self, requests: list[Finished]) -> None:
        canary = [request for request in requests if request.side == CANARY]
        stable = [request for request in requests if request.side == STABLE]
        lengths = [max((len(r.accepted) for r in side), default=0) for side in (canary, stable)]
        common = min(lengths)
        self.keeper.add(*(Requests.of(_row(r, common) for r in side) for side in (canary, stable)))

    def summary(self) -> dict[str, Any]:
        """For the record: every gate that has seen something."""
        results = self.keeper.results()
        return {
            "num_canary": self.num_seen,
            "num_compared": self.num_compared,
            "num_diverged": self.num_diverged,
            "gates": [result._asdict() for result in results],
            "failed": [result.sentence() for result in results if result.is_failed],
        }


def _row(request: Finished, common: int) -> tuple[float, ...]:
    """The columns of Requests; the acceptance length counts the first `common` drafts alone.

    It is no number where a request drafted less than that, so that sides of different draft
    lengths are compared over the drafts that both make.
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
