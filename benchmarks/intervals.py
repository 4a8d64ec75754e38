"""How often do the stated intervals of acceptance hold, and what can one tenant do to the others?

`python -m benchmarks.intervals [--json] [--short]`

Coverage: of AL(K) plus and minus 1.96 standard deviations, over simulated deployments whose tasks
have another first-draft acceptance than published (SD 0.05), another r (SD 0.1, or as said), and
requests that differ by the published spread (SD 0.027 to 0.067). What is asked for is AL(K) of the
cell, or of one of ten tenants (which differ as 120 steps would tell), after so many answers served
at one length, in the last row of each tenant.
Aimed at: 90 to 98 %. Poisoning: 20 % of the requests say "coding" and hold random text; throughput
lost by all others against the same without them, as one tenant among ten, and without tenants.
"""

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._report import arguments, print_report
from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE
from trt_mtp.controller.simulate.workload import Workload, published_cost

KEY = AcceptanceKey("qa", "low", False)
STEPS, LENGTHS = 80, (0, 1, 2, 3, 5)
AFTER = (0, 5, 20, 80, 300)
SPREADS = (0.027, 0.067)  # of first drafts: 0.04 to 0.10 at K = 3, over 1.5
DEPLOYMENT_SD, RATIO_SD, TENANT_TRIALS, NUM_TENANTS = 0.05, 0.1, 120, 10

Rng = np.random.Generator


def beta(rng: Rng, mean: float, sd: float) -> float:
    """A share with this mean and standard deviation."""
    mean = min(max(mean, 0.05), 0.97)
    strength = max(mean * (1 - mean) / sd**2 - 1, 2.0)
    return float(rng.beta(mean * strength, (1 - mean) * strength))


def answer(rng: Rng, p: float, spread: float, ratio: float, served: int) -> list[int]:
    """Accepted drafts by position of one request's steps."""
    own = beta(rng, p, spread)
    reached, accepted = STEPS, []
    for conditional in (own, *(min(ratio * own, 0.995),) * (served - 1)):
        reached = int(rng.binomial(reached, conditional))
        accepted.append(reached)
    return accepted


def true_length(p: float, ratio: float, length: int) -> float:
    """AL of the mean request."""
    return acceptance_lengths((p, *(min(ratio * p, 0.995),) * 7))[length]


def coverage(
    served: int, asked: int, num: int, *, ratio: float | None = None, has_tenants: bool = False
) -> list[float]:
    """The share of deployments whose AL(`asked`) is inside, after each number of answers."""
    inside = [0] * len(AFTER)
    for seed in range(num):
        rng = np.random.default_rng(seed)
        learner = AcceptanceLearner(PUBLISHED_ACCEPTANCE)
        center = beta(rng, PUBLISHED_ACCEPTANCE[KEY.task], DEPLOYMENT_SD)
        r = min(max(rng.normal(0.91, RATIO_SD), 0.5), 1.1) if ratio is None else ratio
        spread = rng.uniform(*SPREADS)
        own = [center] * NUM_TENANTS
        if has_tenants:
            sd = (center * (1 - center) / TENANT_TRIALS) ** 0.5
            own = [beta(rng, center, sd) for _ in range(NUM_TENANTS)]
        num_sent = 0
        for at, until in enumerate(AFTER):
            while num_sent < until * (NUM_TENANTS if has_tenants else 1):
                tenant = num_sent % NUM_TENANTS
                drafts = answer(rng, own[tenant], spread, r, served)
                learner.update({KEY: 1.0}, STEPS, drafts,
                               tenant=f"t{tenant}" if has_tenants else None)  # fmt: skip
                num_sent += 1
            found = learner.estimate(KEY, "t0" if has_tenants else None)
            off = abs(true_length(own[0], r, asked) - found.lengths[asked])
            inside[at] += off <= 1.96 * found.deviations[asked]
    return [round(count / num, 3) for count in inside]


def coverage_rows(num: int) -> Iterator[dict[str, Any]]:
    """The first table."""
    cases: Sequence[tuple[str, int, int, dict[str, Any]]] = (
        ("served at K=1, AL(1)", 1, 1, {}),
        ("served at K=1, AL(5)", 1, 5, {}),
        ("served at K=1, AL(5), r = 0.75", 1, 5, {"ratio": 0.75}),
        ("served at K=1, AL(5), r = 1.0", 1, 5, {"ratio": 1.0}),
        ("served at K=3, AL(5)", 3, 5, {}),
        ("served at K=5, AL(5)", 5, 5, {}),
        ("a tenant's, served at K=3, AL(3)", 3, 3, {"has_tenants": True}),
    )
    for name, served, asked, more in cases:
        share = num // 3 if more.get("has_tenants") else num
        yield {"case": name, "coverage": coverage(served, asked, share, **more)}


def poisoned(load: int, seed: int, num: int, has_tenants: bool, share: float) -> float:
    """Seconds per token of honest coding requests, beside `share` of random text called coding."""
    cost, chance = published_cost(), random.Random(seed)
    policy = Policy(seed=seed)
    honest, poison = (Workload(cost, seed, acceptance={"coding": p}) for p in (0.92, 0.1))
    seconds = tokens = 0.0
    for i in range(num):
        bad = chance.random() < share
        request = (poison if bad else honest).draw({"coding": 1.0})
        tenant = None
        if has_tenants:
            tenant = "bad" if bad else f"t{chance.randrange(NUM_TENANTS - 1)}"
        hosted = [VariantState(f"k{k}", k, True, load - 1, 256, 1 << 20) for k in LENGTHS]
        features = replace(request.features, tenant=tenant)
        decision = policy.choose(features, hosted, now_s=0.0)
        workload = poison if bad else honest
        policy.update(decision, workload.outcome(request, decision.draft_length, load=load))
        if not bad and i > num // 4:
            seconds += workload.seconds(request, decision.draft_length, load)
            tokens += request.num_tokens
    return seconds / tokens


def poison_rows(num: int, seeds: int) -> Iterator[dict[str, Any]]:
    """The second table."""
    for load in (1, 12):
        lost = {}
        for name, has_tenants in (("without tenants", False), ("with tenants", True)):
            ratios = [
                poisoned(load, s, num, has_tenants, 0.2) / poisoned(load, s, num, has_tenants, 0.0)
                for s in range(seeds)
            ]
            lost[name] = round(statistics.median(ratios) - 1, 4)
        yield {"load": load, **lost}


def main() -> None:
    """Print both tables."""
    options = arguments("Intervals and poisoning.", "fewer deployments")
    covered = list(coverage_rows(60 if options.short else 200))
    poison = list(poison_rows(800 if options.short else 1500, 1 if options.short else 3))
    lines = [f"{'coverage after answers':<36}" + "".join(f"{n:>7}" for n in AFTER)]
    lines += [f"{r['case']:<36}" + "".join(f"{c:>7.2f}" for c in r["coverage"]) for r in covered]
    lines += ["", f"{'lost to poison, in flight':<28}{'without tenants':>16}{'with tenants':>14}"]
    lines += [
        f"{r['load']:<28}{r['without tenants']:>16.1%}{r['with tenants']:>14.1%}" for r in poison
    ]
    print_report(options.json, {"coverage": covered, "poison": poison}, lines)


if __name__ == "__main__":
    main()
