"""The regret of policies against the best variant of each request in hindsight, at given loads.

Every policy sees the same requests at the same loads, so that only their choices differ.
Throughput is tokens over the sum of the answers' times.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trt_mtp.controller.batch_schedule import EXAMPLE_SCHEDULE, BatchSchedule
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile
from trt_mtp.controller.simulate.workload import MIXES, SimulatedRequest, Workload, published_cost

LENGTHS = (0, 1, 2, 3, 5)
LOADS = {"low": 1, "crossover": 12, "overload": 96}
SCHEDULE = BatchSchedule.of(EXAMPLE_SCHEDULE)
BURN_IN = 500  # requests before the learned policy is scored


@dataclass(slots=True)
class Times:
    """Seconds by policy name, for one group of requests."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    num_requests: int = 0

    def add(self, times: Mapping[str, float]) -> None:
        """Add one request's time under every policy."""
        self.num_requests += 1
        for name, value in times.items():
            self.seconds[name] += value

    def over(self, other: str, policy: str = "learned") -> float:
        """Throughput of `policy` in units of `other`'s."""
        return self.seconds[other] / self.seconds[policy]

    def best_static(self) -> str:
        """The static length with the least time, `none` among them."""
        statics = [n for n in self.seconds if n.startswith("static-")]
        return min(statics, key=lambda name: self.seconds[name])


@dataclass(frozen=True, slots=True)
class Scenario:
    """A mix (or two, the second from the middle on) at one load."""

    name: str
    load_name: str
    mixes: tuple[Mapping[str, float], ...]
    load: int
    num_requests: int = 2000


def scenarios(num_requests: int = 2000) -> list[Scenario]:
    """The published mixes and a shift between two of them, at three loads."""
    mixes: dict[str, tuple[Mapping[str, float], ...]] = {n: (mix,) for n, mix in MIXES.items()}
    mixes["shift"] = (MIXES["agent"], MIXES["chat"])
    return [
        Scenario(name, load_name, parts, load, num_requests)
        for name, parts in mixes.items()
        for load_name, load in LOADS.items()
    ]


def wrong_priors() -> dict[str, float]:
    """The published acceptance of the tasks, assigned in reverse order."""
    ordered = sorted(PUBLISHED_ACCEPTANCE, key=lambda task: PUBLISHED_ACCEPTANCE[task])
    return {
        task: PUBLISHED_ACCEPTANCE[other]
        for task, other in zip(ordered, reversed(ordered), strict=True)
    }


def run(
    scenario: Scenario, *, profile: Profile | None = None, seed: int = 0, burn_in: int = BURN_IN,
    guess_accuracy: float = 0.85,
) -> tuple[Times, dict[str, Times]]:  # fmt: skip
    """Times of all policies after `burn_in`: over all requests, and by true task."""
    workload = Workload(published_cost(), seed=seed, guess_accuracy=guess_accuracy)
    profile = profile or Profile()
    learned, heuristics = Policy(profile, seed=seed), Policy(profile, seed=seed)
    overall, by_task = Times(), defaultdict[str, Times](Times)
    for i in range(scenario.num_requests):
        part = i * len(scenario.mixes) // scenario.num_requests
        request = workload.draw(scenario.mixes[part])
        times = _times(workload, scenario.load, request, learned, heuristics)
        if i >= burn_in:
            overall.add(times)
            by_task[request.task].add(times)
    return overall, by_task


def _times(
    workload: Workload, load: int, request: SimulatedRequest, learned: Policy, heuristics: Policy
) -> dict[str, float]:
    variants = [VariantState(f"k{k}", k, True, load - 1, 256, 1 << 20) for k in LENGTHS]
    by_length = {k: workload.seconds(request, k, load) for k in LENGTHS}
    times = {f"static-{k}": seconds for k, seconds in by_length.items()}
    times["none"], times["oracle"] = by_length[0], min(by_length.values())
    times["schedule"] = by_length[SCHEDULE.draft_length(load)]
    times["heuristics"] = by_length[
        heuristics.choose(request.features, variants, now_s=0.0).draft_length
    ]
    decision = learned.choose(request.features, variants, now_s=0.0)
    times["learned"] = by_length[decision.draft_length]
    learned.update(decision, workload.outcome(request, decision.draft_length, load=load))
    return times


def report(
    num_requests: int = 2000, seeds: Sequence[int] = (0,), *, profile: Profile | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The ratios of every scenario, and their worst and mean."""
    rows = []
    for scenario in scenarios(num_requests):
        overall, tasks = Times(), defaultdict[str, Times](Times)
        for seed in seeds:
            one, by_task = run(scenario, profile=profile, seed=seed)
            overall.add(one.seconds)
            for task, times in by_task.items():
                tasks[task].add(times.seconds)
        rows.append(_row(scenario, overall, tasks))
        share = rows[-1]["over_oracle"]
        progress(f"{scenario.name} at {scenario.load_name} load: {share} of the oracle")
    return {
        "schema_version": 1,
        "requests_per_scenario": num_requests,
        "burn_in": BURN_IN,
        "scenarios": rows,
        "over_oracle_min": min(row["over_oracle"] for row in rows),
        "over_best_static_mean": round(sum(r["over_best_static"] for r in rows) / len(rows), 4),
        "worst_task_over_none": min(row["worst_task_over_none"] for row in rows),
        "recovery_over_oracle": recovery(num_requests, seeds),
    }


def _row(scenario: Scenario, overall: Times, tasks: Mapping[str, Times]) -> dict[str, Any]:
    best = overall.best_static()
    worst = min(tasks, key=lambda task: tasks[task].over("none"))
    return {
        "mix": scenario.name,
        "load": scenario.load_name,
        "requests_in_flight": scenario.load,
        "best_static": best,
        "over_oracle": round(overall.over("oracle"), 4),
        "over_best_static": round(overall.over(best), 4),
        "over_none": round(overall.over("none"), 4),
        "over_schedule": round(overall.over("schedule"), 4),
        "over_heuristics": round(overall.over("heuristics"), 4),
        "worst_task": worst,
        "worst_task_over_none": round(tasks[worst].over("none"), 4),
    }


def recovery(num_requests: int = 2000, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """Throughput over the oracle's, 500 requests after a start with reversed priors."""
    profile = Profile(acceptance=wrong_priors())
    ratios = {}
    for name, mix in MIXES.items():
        total = Times()
        for seed in seeds:
            scenario = Scenario(name, "low", (mix,), 1, max(num_requests, BURN_IN + 500))
            one, _ = run(scenario, profile=profile, seed=seed)
            total.add(one.seconds)
        ratios[name] = round(total.over("oracle"), 4)
    return ratios
