"""The cost of other choices, estimated from a decision log.

Each answer's own counts say how it would have gone at every draft length up to the one that served
it; longer ones are filled in from its task's answers in the same log. Step times are those that
the log expected at the load of the moment. Counts of one answer are noisy, so they are shrunk to
the task's, or hindsight would look better than it is.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_mtp.controller.acceptance_estimate import acceptance_lengths, pooled
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.decision_log import LogRecord
from trt_mtp.controller.outcome import outcome_problem
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.position_counts import MAX_POSITIONS, PositionCounts
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.errors import InputError

Seconds = NDArray[np.float64]

OWN_WEIGHT = 20.0  # steps of its task's that one answer's steps are shrunk by
RESAMPLES = 400
POLICIES = ("logged", "learned", "heuristics")


class Replayed(NamedTuple):
    """The seconds of one answer at each draft length that could have served it."""

    load_bucket: int  # power of two
    num_tokens: int
    seconds: dict[int, float]
    chosen: int  # draft length


def replay(
    records: Iterable[LogRecord], *, policy: str = "logged", profile: Profile | None = None,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The report of `trt-mtp replay`; raises InputError for a log with nothing to learn from."""
    if policy not in POLICIES:
        raise InputError(f"policy {policy!r} is not one of {', '.join(POLICIES)}")
    kept, num_skipped = [], 0
    for record in records:
        is_over = not outcome_problem(record.outcome) and record.outcome.num_steps > 0
        if not is_over or not _has_times(record):
            num_skipped += 1
        else:
            kept.append(record)
    if not kept:
        raise InputError("the log holds no finished request")
    chosen = _choices(kept, policy, profile or Profile(), seed)
    means = _task_conditionals(kept)
    replayed = [_replayed(r, k, means) for r, k in zip(kept, chosen, strict=True)]
    return {
        "schema_version": 1,
        "policy": policy,
        "requests": len(kept),
        "requests_skipped": num_skipped,
        "explored": sum(record.decision.explored for record in kept),
        **_comparison(replayed, seed),
        "tasks": _by_task(kept, replayed, seed),
    }


def _has_times(record: LogRecord) -> bool:
    """True if the seconds at each length can be estimated."""
    able = [c for c in record.decision.candidates if not c.rejected]
    return all(c.step_s > 0 and c.acceptance_length > 0 for c in able)


def _choices(records: Sequence[LogRecord], policy: str, profile: Profile, seed: int) -> list[int]:
    """The draft length per request under a policy; a learning one sees the outcomes in order."""
    if policy == "logged":
        return [record.decision.draft_length for record in records]
    brain = Policy(profile, seed=seed)
    lengths = []
    for record in records:
        decision = brain.choose(_features(record), _variants(record), now_s=record.decision.now_s)
        lengths.append(decision.draft_length)
        if policy == "learned":
            brain.update(record.decision, record.outcome)
    return lengths


def _features(record: LogRecord) -> RequestFeatures:
    decision = record.decision
    return RequestFeatures(
        temperature={"greedy": 0.0, "low": 0.7}.get(decision.temperature_band, 1.0),
        max_tokens=max(record.outcome.num_output_tokens, 1),
        thinking=decision.thinking,
        hint_task=decision.task,
        tenant=decision.tenant,
        app=decision.app,
    )


def _variants(record: LogRecord) -> list[VariantState]:
    return [
        VariantState(
            c.variant,
            c.draft_length,
            not c.rejected,
            max(c.load - 1, 0),
            1 << 20,
            1 << 30,
            context_tokens=c.context_tokens or None,
        )
        for c in record.decision.candidates
    ]


def _task_conditionals(records: Iterable[LogRecord]) -> dict[str, tuple[float, ...]]:
    """Mean conditionals of each task in the log, towards those of the whole log."""
    whole, tasks = PositionCounts(), defaultdict[str, PositionCounts](PositionCounts)
    for record in records:
        outcome = record.outcome
        for counts in (whole, tasks[record.decision.task]):
            counts.add(outcome.num_steps, outcome.accepted_per_position, 0.1, outcome.cut_after)
    overall = pooled(whole, (0.8,) * MAX_POSITIONS, OWN_WEIGHT)
    return {task: pooled(counts, overall, OWN_WEIGHT) for task, counts in tasks.items()}


def _replayed(record: LogRecord, chosen: int, means: dict[str, tuple[float, ...]]) -> Replayed:
    outcome, decision = record.outcome, record.decision
    own = PositionCounts()
    own.add(  # too light to forget
        outcome.num_steps, outcome.accepted_per_position, 1e-3, outcome.cut_after
    )
    own = replace(
        own, trials=[1e3 * t for t in own.trials], successes=[1e3 * s for s in own.successes]
    )
    lengths = acceptance_lengths(pooled(own, means[decision.task], OWN_WEIGHT))
    tokens = max(outcome.num_output_tokens, 1)
    seconds = {
        c.draft_length: c.wait_s + c.prefill_s
        + tokens * c.step_s / lengths[min(c.draft_length, MAX_POSITIONS)]
        for c in decision.candidates
        if not c.rejected
    }  # fmt: skip
    return Replayed(decision.chosen.load.bit_length(), tokens, seconds, chosen)


def _comparison(replayed: Sequence[Replayed], seed: int) -> dict[str, Any]:
    """Throughput, and its ratio to the oracle's, the best static's per load, and none's."""
    own = np.array([r.seconds[r.chosen] for r in replayed])
    oracle = np.array([min(r.seconds.values()) for r in replayed])
    tokens = sum(r.num_tokens for r in replayed)
    others = {"oracle": oracle, "best_static": _best_static(replayed)}
    if all(0 in r.seconds for r in replayed):
        others["none"] = np.array([r.seconds[0] for r in replayed])
    return {
        "tokens_per_s": round(tokens / float(own.sum()), 3),
        "regret": round(1 - float(oracle.sum() / own.sum()), 4),
        **{f"over_{name}": _ratio(other, own, seed) for name, other in others.items()},
    }


def _best_static(replayed: Sequence[Replayed]) -> Seconds:
    """Seconds under the one draft length per load bucket that takes the least time there."""
    totals: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    common: dict[int, set[int]] = {}
    for r in replayed:
        common[r.load_bucket] = common.get(r.load_bucket, set(r.seconds)) & set(r.seconds)
        for k, seconds in r.seconds.items():
            totals[r.load_bucket][k] += seconds
    best = {
        bucket: min(lengths, key=lambda k: totals[bucket][k]) if lengths else None
        for bucket, lengths in common.items()
    }
    answered = []
    for r in replayed:
        length = best[r.load_bucket]
        answered.append(r.seconds[r.chosen if length is None else length])
    return np.array(answered)


def _ratio(other: Seconds, own: Seconds, seed: int) -> dict[str, float]:
    """other / own with a 95% bootstrap interval over requests."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(own), len(own)) for _ in range(RESAMPLES))
    ratios = sorted(float(other[rows].sum() / own[rows].sum()) for rows in drawn)
    return {
        "ratio": round(float(other.sum() / own.sum()), 4),
        "low": round(ratios[int(0.025 * RESAMPLES)], 4),
        "high": round(ratios[int(0.975 * RESAMPLES) - 1], 4),
    }


def _by_task(
    records: Sequence[LogRecord], replayed: Sequence[Replayed], seed: int
) -> list[dict[str, Any]]:
    groups: dict[str, list[Replayed]] = defaultdict(list)
    for record, one in zip(records, replayed, strict=True):
        groups[record.decision.task].append(one)
    rows = []
    for task, group in sorted(groups.items()):
        shares: dict[int, int] = defaultdict(int)
        for one in group:
            shares[one.chosen] += 1
        rows.append(
            {
                "task": task,
                "requests": len(group),
                "chosen": {str(k): round(n / len(group), 3) for k, n in sorted(shares.items())},
                **_comparison(group, seed),
            }
        )
    return rows
