"""Plans for random mixes: whether they hold, what a router adds, and how long they take to make.

Run `python -m benchmarks.plan [--json] [--short]`. Fifty random mixes, models, GPUs and targets are
planned; other requests than those that a plan was sized by are then simulated on it. Targets: the
simulated percentiles hold on all of them, none is dearer than the best single length, and a plan of
13 tasks and 6 lengths at 5,000 requests a second takes under two seconds.
"""

import statistics
import time
from typing import Any

from benchmarks._report import arguments, print_report
from tests.plan_fixtures import deployment, random_case
from trt_mtp.controller.plan.check import JUDGED, simulate
from trt_mtp.controller.plan.modes import Targets, all_modes, undominated
from trt_mtp.controller.plan.plan import Plan, Wishes, make_plan
from trt_mtp.controller.plan.program import Problem, solve
from trt_mtp.controller.plan.traffic import TaskTraffic
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError

LARGEST = {
    "free": Targets(),
    "tpot_15": Targets(15),
    "both": Targets(15, 2000),
    "tpot_12": Targets(12),
}


def main() -> None:
    """All of it in one run."""
    asked = arguments("Plans for random mixes.", "ten mixes instead of fifty")
    cases = [case(seed) for seed in range(10 if asked.short else 50)]
    made = [one for one in cases if "gain" in one]
    values = {
        "plans": len(made),
        "refused": len(cases) - len(made),
        "never_dearer": all(one["is_never_dearer"] for one in made),
        "worst_p99_over_target": max(one["over_target"] for one in made),
        "mixed": sum(one["is_mixed"] for one in made),
        "router_gain_max": max(one["gain"] for one in made),
        "router_gain_mean": statistics.mean(one["gain"] for one in made),
        "program_s": program_s(),
        **{f"largest_plan_s_{name}": largest_s(targets) for name, targets in LARGEST.items()},
        "plan_s": statistics.median(one["seconds"] for one in made),
    }
    lines = (f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
             for name, value in values.items())  # fmt: skip
    print_report(asked.json, values, lines)


def case(seed: int) -> dict[str, Any]:
    """One random mix, planned and simulated again."""
    traffic, planned, wishes = random_case(seed)
    begin = time.process_time()
    try:
        plan = make_plan(planned, traffic, wishes)
    except InputError:
        return {}
    seconds = time.process_time() - begin
    single = plan.best_single.cost
    return {
        "seconds": seconds,
        "gain": plan.router_gain,
        "is_mixed": plan.is_mixed,
        "is_never_dearer": single is None or plan.cost <= single,
        "over_target": over_target(plan, seed + 1000),
    }


def over_target(plan: Plan, seed: int) -> float:
    """The worst 99th percentile of a task's other requests, over its target; 0 without targets."""
    targets, worst = plan.wishes.targets, 0.0
    for group in plan.fleet.groups:
        count = max(group.count - plan.wishes.spare, 1)
        seen = simulate(plan.deployment, plan.traffic, group.mode, count, group.flow, seed)
        for task, (tpot, ttft) in seen.spreads().items():
            if len(seen.tpot_ms[task]) >= JUDGED:
                over = tpot.p99 / (targets.tpot_ms or 1e12), ttft.p99 / (targets.ttft_ms or 1e12)
                worst = max(worst, *over)
    return worst


def largest() -> dict[str, TaskTraffic]:
    """All tasks, 5,000 requests a second."""
    return {
        task: TaskTraffic(5000 / 13, 300 + 100 * i, 200 + 40 * i) for i, task in enumerate(TASKS)
    }


def largest_s(targets: Targets) -> float:
    """Processor seconds of a whole plan for it."""
    traffic = largest()
    planned = deployment(traffic)
    begin = time.process_time()
    make_plan(planned, traffic, Wishes(targets, gpus=100_000))
    return time.process_time() - begin


def program_s() -> float:
    """Processor seconds of the program alone, at its largest."""
    traffic = largest()
    planned = deployment(traffic)
    begin = time.process_time()
    modes = undominated(all_modes(planned, traffic, Targets(15)))
    rates = {task: one.requests_per_s for task, one in traffic.items()}
    assert solve(Problem(rates, 100_000, distinct=5.0), modes, [0.85] * len(modes)) is not None
    return time.process_time() - begin


if __name__ == "__main__":
    main()
