"""How fast does a gateway unlearn what it was told: a profile, or a peer that has gone?

`python -m benchmarks.unlearning [--json] [--short]`

A calibration (or a peer's 4,000 steps) says that first drafts are accepted with p; live traffic
has another p, constant and at a constant load. Medians over seeds, on the composite rig of
controller/profile.py. The first 500 requests are not scored, but their alarms are counted apart:
those are the true ones. Aimed at: 0.995 of the best static length, and less than one alarm per
1,000 requests afterwards.
"""

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks._report import arguments, print_report
from benchmarks._world import watch
from trt_mtp.controller.acceptance import AcceptanceKey, prior_conditionals
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile
from trt_mtp.controller.simulate.workload import Workload, published_cost

TASK = "qa"
BURN_IN, SCORED = 500, 1000
SHIFTS = ((0.92, 0.80), (0.92, 0.70), (0.92, 0.55), (0.70, 0.92), (0.80, 0.88), (0.85, 0.85))
LOADS = (1, 12)
SOURCES = ("profile", "gone peer")


def told(source: str, p: float, seed: int) -> Policy:
    """A policy that was told by `source` that first drafts are accepted with `p`."""
    steps = 4000.0
    trials, successes = [], []
    for conditional in prior_conditionals(p)[:5]:
        trials.append(steps)
        steps *= conditional
        successes.append(steps)
    counts = {"trials": trials, "successes": successes}
    if source == "profile":
        profile = Profile(
            acceptance=PUBLISHED_ACCEPTANCE | {TASK: p},
            posteriors={f"{TASK}/low/direct": counts},
        )
        return Policy(profile, seed=seed)
    policy = Policy(Profile(), seed=seed)
    scopes = dict.fromkeys((f"task/{TASK}", f"cell/{AcceptanceKey(TASK, 'low', False)}"), counts)
    policy.acceptance.merge({"replicas": {"gone": {"version": 1, "counts": scopes}}})
    return policy


def row(source: str, before: float, live: float, load: int, num_seeds: int) -> dict[str, Any]:
    """One line of the table, medians over seeds."""
    shares, early, late = [], [], []
    for seed in range(num_seeds):
        policy = told(source, before, seed)
        workload = Workload(published_cost(), seed, acceptance={TASK: live})
        first = watch(policy, workload, {TASK: 1.0}, lambda _: load, BURN_IN)
        rest = watch(policy, workload, {TASK: 1.0}, lambda _: load, SCORED)
        shares.append(rest.of_best_static())
        early.append(first.num_alarms)
        late.append(rest.alarms_per_thousand())
    return {
        "source": source,
        "told": before,
        "live": live,
        "load": load,
        "of_best_static": round(statistics.median(shares), 4),
        "worst_seed": round(min(shares), 4),
        "alarms_in_burn_in": statistics.median(early),
        "alarms_per_thousand_after": round(statistics.mean(late), 2),
    }


def rows(num_seeds: int) -> Iterator[dict[str, Any]]:
    """The whole table."""
    for source in SOURCES:
        for before, live in SHIFTS:
            for load in LOADS:
                yield row(source, before, live, load, num_seeds)


def main() -> None:
    """Print the table."""
    options = arguments("What a profile or a peer that is wrong costs.", "three seeds, not nine")
    table = list(rows(3 if options.short else 9))
    lines = [f"{'told by':<11}{'p told -> live':<16}{'load':>4}{'of best static':>16}{'worst':>8}"
             f"{'alarms in 500':>15}{'per 1,000 after':>17}"]  # fmt: skip
    lines += [
        f"{r['source']:<11}{r['told']:.2f} -> {r['live']:.2f}    {r['load']:>4}"
        f"{r['of_best_static']:>16.4f}{r['worst_seed']:>8.3f}{r['alarms_in_burn_in']:>15.0f}"
        f"{r['alarms_per_thousand_after']:>17.2f}"
        for r in table
    ]
    print_report(options.json, {"rows": table}, lines)


if __name__ == "__main__":
    main()
