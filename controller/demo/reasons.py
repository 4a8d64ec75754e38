"""Why the demo's gateway chose what it chose: its decision log, by the requests of a task."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.decision_log import read_log

Decisions = Mapping[str, Decision]  # by id


def read_decisions(log: Path) -> Decisions:
    """The decisions of a gateway that has ended."""
    return {record.decision.decision_id: record.decision for record in read_log(log)}


def choice_reasons(decisions: Sequence[Decision]) -> dict[str, Any]:
    """The shares of the policy's last reasons, most frequent first, and what it expected.

    `expected_speedup` is the median over decisions of K = 0's expected time over the chosen one's;
    None if K = 0 could not serve.
    """
    why = Counter(decision.reasons[-1] for decision in decisions)
    return {
        "reasons": {reason: round(n / why.total(), 3) for reason, n in why.most_common()},
        "expected_speedup": _expected_speedup(decisions),
    }


def _expected_speedup(decisions: Iterable[Decision]) -> float | None:
    ratios = [
        candidate.total_s / decision.chosen.total_s
        for decision in decisions
        for candidate in decision.candidates
        if candidate.draft_length == 0 and not candidate.rejected
    ]
    return round(statistics.median(ratios), 3) if ratios else None


def reason_rows(tasks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """For people: a task, its requests' most frequent reason with its share, what was expected."""
    for line in tasks:
        reason, share = next(iter(line["reasons"].items()), ("not logged", 1.0))
        expected = line["expected_speedup"]
        yield (
            line["task"],
            f"{reason} ({share:.0%})",
            "-" if expected is None else f"{expected:.2f}",
        )
