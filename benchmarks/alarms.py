"""How soon is a shift of acceptance noticed, how often wrongly, and what if nothing is drafted?

`python -m benchmarks.alarms [--json] [--short]`

False alarms: first drafts of one cell, 4,000 answers, requests spread by 0.04 or 0.08, or 15% of
them another task's (writing taken for coding). Delay: answers from a shift of 0.92 until the alarm.
Starvation: acceptance learned as 0.2 is 0.92 again while a load is held at which no drafts looked
best; throughput over the best static length's, 1,000 requests after 3,000.
"""

import random
import statistics
from typing import Any

from benchmarks._report import arguments, print_report
from benchmarks._world import watch
from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile
from trt_mtp.controller.simulate.workload import Workload, published_cost

KEY = AcceptanceKey("coding", "low", False)
STEPS = 80


def answer(rng: random.Random, mean: float, spread: float) -> tuple[int, list[int]]:
    """Steps and accepted drafts of one answer at K = 1."""
    strength = mean * (1 - mean) / spread**2 - 1
    p = rng.betavariate(mean * strength, (1 - mean) * strength)
    return STEPS, [rng.binomialvariate(STEPS, p) if hasattr(rng, "binomialvariate")
                   else sum(rng.random() < p for _ in range(STEPS))]  # fmt: skip


def false_alarms(spread: float, misguessed: float, num: int) -> float:
    """Alarms per 1,000 answers of traffic that doesn't change, after 200."""
    rng, brain, alarms = random.Random(1), AcceptanceLearner(PUBLISHED_ACCEPTANCE), 0
    for i in range(num + 200):
        mean = 0.68 if rng.random() < misguessed else 0.88
        raised = brain.update({KEY: 1.0}, *answer(rng, mean, spread))
        alarms += raised is not None and i >= 200
    return 1000 * alarms / num


def delay(after: float, seed: int) -> int:
    """Answers until the alarm, after 400 at 0.92."""
    rng, brain = random.Random(seed), AcceptanceLearner(PUBLISHED_ACCEPTANCE)
    for _ in range(400):
        brain.update({KEY: 1.0}, *answer(rng, 0.92, 0.04))
    for i in range(500):
        if brain.update({KEY: 1.0}, *answer(rng, after, 0.04)) is not None:
            return i + 1
    return 500


def starved(load: int, seed: int) -> float:
    """Throughput over the best static length's, after acceptance came back."""
    policy = Policy(Profile(), seed=seed)
    for p, num in ((0.2, 1000), (0.92, 3000), (0.92, 1000)):
        workload = Workload(published_cost(), seed, acceptance={"coding": p})
        seen = watch(policy, workload, {"coding": 1.0}, lambda _: load, num)
    return seen.of_best_static()


def main() -> None:
    """Print the three tables."""
    options = arguments("Alarms and starvation.", "fewer answers and seeds")
    num, seeds = (1000, 3) if options.short else (4000, 9)
    rows: dict[str, Any] = {}
    for name, spread, misguessed in (("spread 0.04", 0.04, 0.0), ("spread 0.08", 0.08, 0.0),
                                     ("15 % misguessed", 0.04, 0.15)):  # fmt: skip
        rows[f"false alarms per 1,000, {name}"] = round(false_alarms(spread, misguessed, num), 2)
    for after in (0.88, 0.85, 0.8):
        delays = [delay(after, seed) for seed in range(3 * seeds)]
        rows[f"delay 0.92 -> {after}"] = statistics.median(delays)
    for load in (16, 24, 32):
        shares = [starved(load, seed) for seed in range((seeds + 2) // 3)]
        rows[f"starved at {load} in flight"] = round(statistics.median(shares), 3)
    print_report(options.json, rows, [f"{name:<44}{value:>8}" for name, value in rows.items()])


if __name__ == "__main__":
    main()
