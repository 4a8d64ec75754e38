"""Deployments and traffic for the tests and benchmarks of the planner."""

import random

from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.plan.deployment import Deployment, from_model
from trt_mtp.controller.plan.modes import Mode, Targets
from trt_mtp.controller.plan.plan import Wishes
from trt_mtp.controller.plan.program import Problem
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic
from trt_mtp.controller.tasks import TASKS

LENGTHS = (0, 1, 2, 3, 4, 5)


def traffic(rate: float = 20.0, **shares: float) -> dict[str, TaskTraffic]:
    """Requests of these tasks, by their shares of the rate."""
    shares = shares or {"coding": 0.5, "writing": 0.3, "qa": 0.2}
    total = sum(shares.values())
    return {
        task: TaskTraffic(rate * share / total, 600, 300 + 50 * i)
        for i, (task, share) in enumerate(shares.items())
    }


def deployment(demand: Traffic, model: str = "qwen3.8-27b-fp8") -> Deployment:
    """A model on H100s, by the prior."""
    return from_model(find_model(model), find_gpu("h100-80gb"), demand, LENGTHS)


def random_case(seed: int) -> tuple[Traffic, Deployment, Wishes]:
    """A mix of two to six tasks on some model and GPU, with targets that can mostly be met."""
    rng = random.Random(seed)
    tasks = rng.sample(TASKS, rng.randint(2, 6))
    demand = {
        task: TaskTraffic(
            rng.lognormvariate(1, 1), rng.uniform(50, 2000), rng.lognormvariate(5.5, 0.5)
        )
        for task in tasks
    }
    model = rng.choice(("qwen3.8-27b-fp8", "qwen3.8-27b", "qwen3.6-35b-a3b-fp8"))
    gpu = find_gpu(rng.choice(("h100-80gb", "h200-141gb", "b200-180gb")))
    planned = from_model(find_model(model), gpu, demand, LENGTHS)
    targets = Targets(rng.choice((None, 20, 30, 45)), rng.choice((None, 1500, 3000)))
    return demand, planned, Wishes(targets, gpus=10_000, spare=rng.choice((0, 0, 1)), seed=seed)


def random_program(seed: int) -> tuple[Problem, list[Mode], list[float]]:
    """A program of a few tasks, modes and replicas, which can be tried out whole."""
    rng = random.Random(seed)
    tasks = TASKS[: rng.randint(1, 3)]
    modes = []
    for length in range(rng.randint(1, 3)):
        served = [task for task in tasks if rng.random() < 0.85]
        modes.append(Mode(length, 8, {task: rng.uniform(0.05, 1.0) for task in served}))
    rates = {task: rng.uniform(0.1, 2.0) for task in tasks}
    present = rng.choice(({}, {0: 2}, {0: 1, 1: 2}))
    problem = Problem(rates, rng.randint(1, 5), rng.choice((0, 0, 1)), present)
    return problem, modes, [rng.uniform(0.5, 0.85) for _ in modes]
