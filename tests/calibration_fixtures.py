"""Profiles with a calibration, of a simulated workload with published acceptance and step costs."""

import random
import statistics
from collections.abc import Sequence
from typing import Any

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.calibration import (
    BestLength,
    Calibration,
    Cell,
    CellKey,
    Crossover,
    Interval,
    Percentiles,
    PredictionQuality,
    Recommendation,
)
from trt_mtp.controller.decision_log import LogRecord
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.replay import replay
from trt_mtp.controller.simulate.workload import Workload, published_cost

TASKS = ("coding", "math", "qa", "roleplay", "structured_output", "writing")
LENGTHS = (0, 1, 3, 5)
CONCURRENCIES = (1, 2, 4, 8, 16, 32)
TTFT_S = 0.08
ONE = Interval(1.0, 1.0, 1.0)


def simulated_profile(
    tasks: Sequence[str] = TASKS,
    lengths: Sequence[int] = LENGTHS,
    concurrencies: Sequence[int] = CONCURRENCIES,
    *,
    seed: int = 1,
    left_out: Sequence[tuple[str, int, int]] = (),
) -> Profile:
    """What a calibration of the published composite rig would have brought.

    Nothing in it was measured; the fingerprint and the environment say so.
    """
    workload = Workload(published_cost(), seed=seed, acceptance=_spread_out())
    grid = [(t, k, c) for t in tasks for c in concurrencies for k in lengths]
    cells = tuple(_cell(workload, *key) for key in grid if key not in left_out)
    plain = 0 in lengths
    return Profile(
        fingerprint="simulated-rig-0001",
        measured_on={"checkpoint": "none", "engine": "simulated"},
        calibration=Calibration(
            created="2026-01-02T03:04:05+00:00",
            seed=seed,
            prompts="simulated 0000",
            temperature=0.7,
            max_tokens=256,
            duration_s=300.0,
            tasks=tuple(tasks),
            draft_lengths=tuple(lengths),
            concurrencies=tuple(concurrencies),
            environment={"machine": "none: simulated by the tests", "trt-mtp": "0.0"},
            cells=cells,
            unmeasured=tuple(CellKey(*key) for key in left_out),
            prediction=PredictionQuality(num_cells=12, median_abs_error=0.02, p90_abs_error=0.05),
            crossovers=tuple(_crossovers(cells, tasks, lengths)) if plain else (),
            recommendation=_recommendation(cells, tasks, concurrencies) if plain else None,
        ),
    )


def _spread_out() -> dict[str, float]:
    """Published acceptance, with prose that hardly drafts: so that every kind of advice is seen."""
    return Profile().priors() | {"roleplay": 0.12, "writing": 0.42}


def _cell(workload: Workload, task: str, length: int, concurrency: int) -> Cell:
    step_s = workload.cost.step_s(length, concurrency)
    outcomes = [
        workload.outcome(workload.draw({task: 1.0}), length, load=concurrency) for _ in range(12)
    ]
    steps = sum(o.num_steps for o in outcomes)
    tokens = sum(o.num_output_tokens for o in outcomes)
    accepted = tuple(sum(o.accepted_per_position[j] for o in outcomes) for j in range(length))
    tpots = [1000 * step_s * o.num_steps / o.num_output_tokens for o in outcomes]
    plain_ms = 1000 * workload.cost.step_s(0, concurrency)
    speedups = [plain_ms / tpot for tpot in tpots]
    rates = [1000 * concurrency / tpot for tpot in tpots]
    return Cell(
        task=task,
        draft_length=length,
        concurrency=concurrency,
        num_requests=len(outcomes),
        num_output_tokens=tokens,
        num_steps=steps,
        accepted_per_position=accepted,
        ttft_ms=_percentiles([1000 * TTFT_S * (1 + i / 50) for i in range(12)]),
        tpot_ms=_percentiles(tpots),
        itl_ms=_percentiles([1000 * step_s * (1 + i / 100) for i in range(12)]),
        tokens_per_s=_interval(rates),
        speedup=_interval(speedups) if length else None,
        ended="tight",
    )


def _percentiles(values: list[float]) -> Percentiles:
    cuts = statistics.quantiles(values, n=100)
    return Percentiles(round(cuts[49], 3), round(cuts[94], 3), round(cuts[98], 3))


def _interval(values: list[float]) -> Interval:
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(200))
    return Interval(round(statistics.fmean(values), 4), round(means[5], 4), round(means[194], 4))


def _speedup(cells: Sequence[Cell], task: str, length: int, concurrency: int) -> Interval | None:
    key = (task, length, concurrency)
    found = [c for c in cells if (c.task, c.draft_length, c.concurrency) == key]
    return (found[0].speedup or ONE) if found else None


def _crossovers(
    cells: Sequence[Cell], tasks: Sequence[str], lengths: Sequence[int]
) -> list[Crossover]:
    found = []
    for task in tasks:
        for length in [k for k in lengths if k]:
            own = [c for c in cells if (c.task, c.draft_length) == (task, length)]
            lost = [float(c.concurrency) for c in own if c.speedup and c.speedup.value < 1]
            crossover = Crossover(
                task=task, draft_length=length, concurrency=0.9 * lost[0] if lost else None
            )
            found.append(crossover)
    return found


def _recommendation(
    cells: Sequence[Cell], tasks: Sequence[str], concurrencies: Sequence[int]
) -> Recommendation:
    best = []
    for task in tasks:
        for concurrency in concurrencies:
            own = {c.draft_length: c.speedup or ONE for c in cells
                   if (c.task, c.concurrency) == (task, concurrency)}  # fmt: skip
            if not own:
                continue
            length = max(own, key=lambda k: own[k].value)
            ties = tuple(k for k in own if k != length and own[k].high > own[length].low)
            best.append(
                BestLength(task=task, concurrency=concurrency, draft_length=length,
                           speedup=own[length], ties=ties)
            )  # fmt: skip
    return Recommendation(
        draft_length=3,
        speedup=Interval(1.78, 1.72, 1.85),
        routed_speedup=Interval(1.11, 1.08, 1.14),
        hold_one=False,
        best=tuple(best),
    )


def simulated_replay() -> dict[str, Any]:
    """What `trt-mtp replay --json` says of a short log of two tasks."""
    policy, records = Policy(), []
    for i in range(40):
        features = request(hint_task="coding" if i % 2 else "writing")
        decision = policy.choose(features, variants(0, 1, 3), now_s=float(i))
        acceptance = 0.9 if i % 2 else 0.4
        records.append(LogRecord(decision, outcome(decision.draft_length, acceptance)))
    return replay(records)
