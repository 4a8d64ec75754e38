"""How good is the choice on a machine that no profile describes, and on one known by name?

`python -m benchmarks.hardware [--json] [--short]`

The true step times are the roofline (controller/roofline.py) of an H100 for a dense and a sparse
model in FP8, with an error of each length's R that no prior knows (log SD 0.1 at K = 3). The policy
starts from the published composite ("unknown") or from the roofline ("named"). Medians over seeds
of throughput over that of the best static length: the first 500 requests, and 1,000 requests after
2,000. Aimed at: 0.99 at once where the GPU is named, 0.995 later in every cell.
"""

import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks._report import arguments, print_report
from benchmarks._world import LENGTHS, watch
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.prior_profile import TYPICAL_CONTEXT, prior_profile
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.roofline import Roofline
from trt_mtp.controller.simulate.workload import MIXES, Workload

GPU = find_gpu("h100-80gb")
MODELS = ("qwen3.8-27b-fp8", "qwen3.6-35b-a3b-fp8")
LOADS = (1, 4, 8, 16, 32, 64)
FIRST, LEARNING, SCORED = 500, 1500, 1000
ERROR = 0.1


def truth(model: str, seed: int) -> StepCost:
    """The step times of the machine."""
    table = Roofline(find_model(model).shape, GPU).step_cost(LENGTHS[1:], TYPICAL_CONTEXT)
    rng = random.Random(seed)
    shared = rng.gauss(0, 1)
    ratios = {}
    for k, curve in table.ratios.items():
        off = ERROR * math.log(k + 1, 4) * (0.9 * shared + 0.43 * rng.gauss(0, 1))
        ratios[k] = tuple((b, max(1.02, r * math.exp(off))) for b, r in curve)
    return StepCost(table.plain_step_s, ratios)


def policy(model: str, start: str, seed: int) -> Policy:
    """A policy that knows the GPU by name, or nothing of it."""
    if start == "unknown":
        return Policy(Profile(), seed=seed)
    return Policy(prior_profile(find_model(model), GPU, LENGTHS), seed=seed)


def row(model: str, start: str, load: int, num_seeds: int) -> dict[str, Any]:
    """One line of the table."""
    early, late, best = [], [], []
    for seed in range(num_seeds):
        workload, one = Workload(truth(model, seed), seed), policy(model, start, seed)
        first = watch(one, workload, MIXES["chat"], lambda _: load, FIRST)
        watch(one, workload, MIXES["chat"], lambda _: load, LEARNING)
        last = watch(one, workload, MIXES["chat"], lambda _: load, SCORED)
        early.append(first.of_best_static())
        late.append(last.of_best_static())
        best.append(min(last.static_s, key=lambda k: last.static_s[k]))
    return {
        "model": model,
        "start": start,
        "load": load,
        "first_500": round(statistics.median(early), 4),
        "after_2000": round(statistics.median(late), 4),
        "worst_seed": round(min(late), 4),
        "best_static": best,
    }


def rows(num_seeds: int) -> Iterator[dict[str, Any]]:
    """The whole table."""
    for model in MODELS:
        for start in ("unknown", "named"):
            for load in LOADS:
                yield row(model, start, load, num_seeds)


def main() -> None:
    """Print the table."""
    options = arguments("What knowing the hardware is worth.", "one seed, not three")
    table = list(rows(1 if options.short else 3))
    lines = [f"{'model':<21}{'GPU':<9}{'load':>4}{'first 500':>11}{'after 2,000':>13}{'worst':>8}"
             "  best static K by seed"]  # fmt: skip
    lines += [
        f"{r['model']:<21}{r['start']:<9}{r['load']:>4}{r['first_500']:>11.3f}"
        f"{r['after_2000']:>13.4f}{r['worst_seed']:>8.3f}  {r['best_static']}"
        for r in table
    ]
    print_report(options.json, {"rows": table}, lines)


if __name__ == "__main__":
    main()
