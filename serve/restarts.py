"""Restarts of a server: their reasons, their number, and how its models learn that number."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

VARIABLE = "TRT_MTP_SERVER_RESTARTS"  # in the environment of Triton: a JSON object by reason
LONGEST_PAUSE_S = 30.0  # before a restart


class Reason(StrEnum):
    """The reason of a restart; a label of the metric."""

    ENDED = "ended"  # the server's process ended
    ABORTED = "aborted"  # its log reports a fatal signal; the process may still exist
    MODEL_ENDED = "model_ended"  # a model's process ended
    SILENT = "silent"  # the server does not answer
    LOAD_TIMEOUT = "load_timeout"  # a model was not ready in time


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with a server."""

    reason: Reason
    text: str  # the beginning of a sentence


class Restarts:
    """The restarts of one server.

    They age only while it serves, so that slow restarts are not forgotten before they are too many.
    """

    def __init__(self, window_s: float) -> None:
        """A restart counts as recent for `window_s` seconds of service."""
        self._window_s = window_s
        self._served_s = 0.0
        self._recent: list[float] = []  # at which time of service
        self._counts: Counter[Reason] = Counter()

    def note(self, reason: Reason, served_s: float) -> int:
        """Count a restart after `served_s` seconds of service; returns the recent ones' number."""
        self._served_s += served_s
        first = self._served_s - self._window_s
        self._recent = [at for at in self._recent if at > first] + [self._served_s]
        self._counts[reason] += 1
        return len(self._recent)

    def environment(self) -> dict[str, str]:
        """Environment variables for the next start."""
        return {VARIABLE: json.dumps({reason: self._counts[reason] for reason in Reason})}


def pause_s_before(num_restarts: int) -> float:
    """How long to wait before the latest of so many recent restarts."""
    return (
        float(min(2.0 ** min(num_restarts - 2, 99), LONGEST_PAUSE_S)) if num_restarts > 1 else 0.0
    )


def counts_in(environment: Mapping[str, str]) -> dict[str, int]:
    """The number of restarts by reason; empty if no server counts them."""
    counts: dict[str, int] = json.loads(environment.get(VARIABLE, "{}"))
    return counts
