"""How often do the gates of a rollout abort a good version, and how soon do they find a slow one?

`python -m benchmarks.rollout_gates [--json] [--rollouts N]`

Simulated rollouts: acceptance drawn per request from the published spread
(controller/simulate/workload.py),
answers of log-normal length, a load that moves both sides up and down together. The canary is
equal; or slower in all tasks by exactly what is tolerated (the hardest case that must still not be
aborted); or 5% slower in one task. A rollout is watched for a fixed number of canary requests and
looked at after every window.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.rollout.gates import GateKeeper, Requests
from trt_mtp.controller.rollout.spec import Gates
from trt_mtp.controller.simulate.workload import Workload, published_cost
from trt_mtp.controller.tasks import TASKS

DRAFT_LENGTH = 3
POOL = 2000  # requests simulated for each task, then drawn from
LOAD_SD = 0.15  # log SD of how the load moves a window's times
PER_WINDOW = 40  # canary requests
STABLE_PER_CANARY = 4


@dataclass(frozen=True, slots=True)
class Truth:
    """How the canary really is."""

    slower: float  # relative, of whole answers
    tasks: tuple[int, ...]  # in these


def make_pool(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Requests as rows of gates' columns, [task, request, column]."""
    workload = Workload(published_cost(), seed)
    rows = [
        [
            as_row(index, workload.outcome(workload.draw({task: 1.0}), DRAFT_LENGTH))
            for _ in range(POOL)
        ]
        for index, task in enumerate(TASKS)
    ]
    return np.array(rows)


def as_row(task: int, outcome: Outcome) -> tuple[float, ...]:
    """The columns of Requests."""
    assert outcome.ttft_s is not None
    tokens, after_first = outcome.num_output_tokens, outcome.duration_s - outcome.ttft_s
    return (
        task,
        0.0,
        outcome.ttft_s,
        after_first / (tokens - 1),
        tokens / outcome.duration_s,
        1 + outcome.num_accepted_draft_tokens / outcome.num_steps,
    )


def draw(
    pool: np.ndarray[Any, np.dtype[np.float64]],
    random: np.random.Generator,
    tasks: Sequence[int],
    num: int,
    load: float,
    truth: Truth,
) -> Requests:
    """`num` requests of random tasks at a load, slower where the truth says so."""
    which = random.choice(tasks, num)
    rows = pool[which, random.integers(POOL, size=num)].copy()
    factor = load * np.where(np.isin(which, truth.tasks), 1 / (1 - truth.slower), 1.0)
    columns = Requests(*rows.T)
    return columns._replace(
        ttft_s=columns.ttft_s * factor,
        tpot_s=columns.tpot_s * factor,
        tok_s=columns.tok_s / factor,
    )


def rollout(
    pool: np.ndarray[Any, np.dtype[np.float64]],
    seed: int,
    gates: Gates,
    tasks: Sequence[int],
    truth: Truth,
    num_canary: int,
) -> int | None:
    """The number of canary requests after which it was aborted; None if it never was."""
    random, keeper = np.random.default_rng(seed), GateKeeper(gates)
    as_ever = Truth(0.0, ())
    while keeper.num_canary < num_canary:
        load = random.lognormal(0, LOAD_SD)
        stable = draw(pool, random, tasks, PER_WINDOW * STABLE_PER_CANARY, load, as_ever)
        keeper.add(draw(pool, random, tasks, PER_WINDOW, load, truth), stable)
        if keeper.failed():
            return keeper.num_canary
    return None


def case(name: str, ends: list[int | None], num_tasks: int, budget: int) -> dict[str, Any]:
    """One line of the result; the traffic is that of the rollouts that were aborted."""
    aborted = sorted(end for end in ends if end is not None)
    share = {"aborted": len(aborted), "rollouts": len(ends), "share": len(aborted) / len(ends)}
    traffic = {}
    if len(aborted) > 1:
        median, p95 = statistics.median(aborted), float(np.percentile(aborted, 95))
        traffic = {"canary_requests_p50": median, "canary_requests_p95": p95}
        traffic["of_its_task_p50"] = round(median / num_tasks)
    return {"case": name, **share, "canary_requests_watched": budget, **traffic}


def run(rollouts: int, num_canary: int, seed: int = 0) -> dict[str, Any]:
    """All cases, each with `rollouts` rollouts."""
    gates, pool, everything = Gates(), make_pool(seed), range(len(TASKS))
    mixed = tuple(TASKS.index(task) for task in ("coding", "writing", "qa", "tool_call"))
    slow_task = TASKS.index("writing")
    cases = (
        ("equal", everything, Truth(0.0, ())),
        ("slower by the tolerance", everything, Truth(gates.tolerance, tuple(everything))),
        ("one of 4 tasks 5% slower", mixed, Truth(0.05, (slow_task,))),
        ("one of 13 tasks 5% slower", everything, Truth(0.05, (slow_task,))),
    )
    start = time.perf_counter()
    results = []
    for number, (name, tasks, truth) in enumerate(cases):
        budget = num_canary * len(tasks)
        seeds = range(rollouts * number, rollouts * (number + 1))
        ends = [rollout(pool, s, gates, tuple(tasks), truth, budget) for s in seeds]
        results.append(case(name, ends, len(tasks), budget))
    return {
        "schema_version": 1,
        "alpha": gates.alpha,
        "tolerance": gates.tolerance,
        "cases": results,
        "wall_s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run the cases and print what they gave."""
    parser = argparse.ArgumentParser(description="False aborts and detection of a rollout's gates.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rollouts", type=int, default=1000, help="of each case")
    parser.add_argument("--requests", type=int, default=1000, help="of the canary, for each task")
    options = parser.parse_args()
    result = run(options.rollouts, options.requests)
    if options.json:
        print(json.dumps(result))
        return
    print(f"alpha {result['alpha']:.0%}, tolerance {result['tolerance']:.0%}")
    for line in result["cases"]:
        print(
            f"{line['case']:28} aborted {line['aborted']:5} of {line['rollouts']} "
            f"({line['share']:.1%}), watched for {line['canary_requests_watched']} canary requests"
        )
        if "canary_requests_p50" in line:
            print(
                f"{'':28} found after {line['canary_requests_p50']:.0f} (p95 "
                f"{line['canary_requests_p95']:.0f}) canary requests, "
                f"{line['of_its_task_p50']} of them of the task"
            )


if __name__ == "__main__":
    main()
