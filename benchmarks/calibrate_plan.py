"""How many cells does a calibration need? Simulated deployments whose truth is known.

`python -m benchmarks.calibrate_plan [--deployments N] [--budget SECONDS] [--short] [--json]`

Acceptance is spread around what was published, step costs around the published composite rig. Each
deployment is measured until the plan has no open choice left or the budget, in simulated seconds,
is spent. Noise is the standard deviation, in percent, of what a batch takes, on top of 5% of each
answer; the product's error is what each cell's truth has beyond AL / R. With --short only the
smallest table, also begun from the published composite as a prior, believed like a roofline.
Aimed at: settled with 60 cells at 1% and 100 at 10% noise, at most 2.5% of the settled choices
losing more than 5% in truth.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tests.calibrate_world import World, run
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibration import ALLOWED_LOSS, Recommendation
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.prior_profile import ROOFLINE_RATIO
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile

SIZES = {
    "13 tasks, 6 variants, 8 loads": (13, (1, 2, 3, 4, 5), (1, 2, 4, 8, 16, 32, 64, 128)),
    "13 tasks, 5 variants, 5 loads": (13, (1, 2, 3, 5), (1, 2, 4, 8, 16)),  # what is the default
    "7 tasks, 5 variants, 4 loads": (7, (1, 2, 3, 5), (1, 2, 4, 8)),
}
NOISES = ((0.01, 0.01), (0.03, 0.03), (0.10, 0.03))  # of batches, of the product
RUN_INFO = RunInfo("simulated", {}, {}, "2026-01-01T00:00:00+00:00", "none", 0.0, 200, True, True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one calibration needed, and what following it costs."""

    cells: int
    measured_s: float
    settled: float  # shares of the choices
    wrong: float  # settled, and truly losing more than is allowed against the best length
    best: float
    within: float  # the best length is chosen, or can't be told from the chosen one
    mean_loss: float  # against the truly best length
    worst_loss: float


def deployment(size: str, noise: float, error: float, seed: int) -> World:
    """One with acceptance and costs of its own."""
    num_tasks, lengths, loads = SIZES[size]
    draw, cost = random.Random(seed), Profile().step_cost()
    tasks = dict(sorted(PUBLISHED_ACCEPTANCE.items())[:num_tasks])
    acceptance = {t: min(max(p + draw.gauss(0, 0.1), 0.2), 0.97) for t, p in tasks.items()}
    scale = draw.uniform(0.7, 1.3)
    ratios = {k: {b: 1 + (cost.ratio(k, b) - 1) * scale for b in loads} for k in lengths}
    return World(acceptance, ratios, seed=seed, batch_noise=noise, interaction=error)


def calibrated(world: World, budget_s: float, prior: StepCost | None = None) -> Outcome:
    """The plan followed to its end, and its advice compared with the truth."""
    settings = world.settings(prior=prior)
    results = run(world, settings, budget_s=budget_s)
    calibration = profile_of(settings, results, RUN_INFO).calibration
    assert calibration is not None
    assert calibration.recommendation is not None
    return compared(world, calibration.recommendation, len(calibration.cells), results.elapsed_s)


def compared(world: World, advice: Recommendation, cells: int, measured_s: float) -> Outcome:
    """Each choice against the length that is truly best."""
    losses, num_best, num_within, num_settled, num_wrong = [], 0, 0, 0, 0
    for one in advice.best:
        truth = {k: world.true_speedup(one.task, k, one.concurrency) for k in (0, *world.ratios)}
        best = max(truth, key=lambda k: truth[k])
        losses.append(1 - truth[one.draft_length] / truth[best])
        num_best += best == one.draft_length
        num_within += best in (one.draft_length, *one.ties)
        num_settled += one.is_settled
        num_wrong += one.is_settled and losses[-1] > ALLOWED_LOSS
    n = len(losses)
    return Outcome(
        cells, measured_s, num_settled / n, num_wrong / n, num_best / n, num_within / n,
        statistics.mean(losses), max(losses),
    )  # fmt: skip


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several deployments; the worst loss of all."""
    rows = [asdict(one) for one in outcomes]
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    return Outcome(**{**means, "worst_loss": max(one.worst_loss for one in outcomes)})


def sentence(line: Mapping[str, Any]) -> str:
    """A line for people."""
    return (
        "{size}{with_prior}, noise {noise:.0%}, product off by {error:.0%}: {cells:.0f} of {of} "
        "cells in {measured_s:.0f} s; {settled:.0%} of the choices settled, {wrong_of_settled:.1%} "
        "of those wrong, {best:.0%} best, {within:.0%} within the interval; loss {mean_loss:.2%} "
        "(mean), {worst_loss:.1%} (worst)"
    ).format(**line, with_prior=" with a prior" if line["has_prior"] else "")


def lines(sizes: Sequence[str], num: int, budget_s: float, *, has_prior: bool) -> Iterator[Any]:
    """A line for each size and noise."""
    prior = replace(Profile().step_cost(), ratio_deviation=ROOFLINE_RATIO) if has_prior else None
    for size in sizes:
        for noise, error in NOISES:
            worlds = [deployment(size, noise, error, seed) for seed in range(num)]
            found = mean([calibrated(world, budget_s, prior) for world in worlds])
            yield {
                "size": size, "has_prior": has_prior, "noise": noise, "error": error,
                "of": len(list(worlds[0].settings().cells())), **asdict(found),
                "wrong_of_settled": found.wrong / found.settled if found.settled else 0.0,
            }  # fmt: skip


def main() -> None:
    """Print a line for each size and noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=3)
    parser.add_argument("--budget", type=float, default=7200.0)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    num, budget_s = arguments.deployments, arguments.budget
    sizes = list(SIZES)[-1:] if arguments.short else list(SIZES)
    printed = []
    for has_prior in (False, True)[: 1 + arguments.short]:
        for line in lines(sizes, num, budget_s, has_prior=has_prior):
            printed.append(line)
            if not arguments.json:
                print(sentence(line), flush=True)
    if arguments.json:
        print(json.dumps({"schema_version": 1, "deployments": num, "lines": printed}))


if __name__ == "__main__":
    main()
