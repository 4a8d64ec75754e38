"""The planner's replicas, against those of `trt-mtp simulate`."""

import math
import random

import pytest

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.context_cost import ContextCost
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.plan.replicas import Engine, Replicas, Requests
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.simulate.fleet import Fleet, InFlight
from trt_mtp.controller.simulate.workload import SimulatedRequest

COST = StepCost(
    ((1, 0.01), (16, 0.02)),
    {1: ((1, 1.1), (16, 1.3)), 3: ((1, 1.3), (16, 1.9))},
    context=ContextCost(at_tokens=500, plain_s=1e-6, draft_s=5e-7),
)
FEATURES = RequestFeatures(temperature=0.0, max_tokens=400)
SCHEDULE = BatchSchedule.of({2: 3, 4: 1})


@pytest.mark.parametrize("schedule", [None, SCHEDULE])
@pytest.mark.parametrize("seed", range(3))
def test_requests_start_and_end_as_in_the_fleet(seed: int, schedule: BatchSchedule | None) -> None:
    """Both simulators give every request the same first token and the same end."""
    rng = random.Random(seed)
    flights = [flight(rng) for _ in range(400)]
    arrivals = sorted(rng.uniform(0, 100) for _ in flights)
    ended = fleet(flights, arrivals, schedule)
    replicas = Replicas(Engine(COST, 3, 4, schedule), 3, requests(flights, arrivals))
    replicas.run()
    assert replicas.ended_at == pytest.approx([ended[id(flight)] for flight in flights])
    assert replicas.first_token_at == pytest.approx([flight.first_token_at for flight in flights])


def flight(rng: random.Random) -> InFlight:
    lengths = (1.0, 1 + rng.random(), 2.0, 2 + rng.random())
    prompt, tokens = rng.randint(1, 3000), rng.randint(1, 400)
    request = SimulatedRequest("qa", tokens, (), lengths, FEATURES, prompt)
    return InFlight(request, 0.0, 0, None, prefill_s=prompt / 10_000)


def fleet(
    flights: list[InFlight], arrivals: list[float], schedule: BatchSchedule | None
) -> dict[int, float]:
    """When each request ends, by its id."""
    others = Fleet([3] * 3, COST, 4, {} if schedule is None else {3: schedule})
    ended: list[tuple[float, InFlight]] = []
    for one, now in zip(flights, arrivals, strict=True):
        ended += others.finished_until(now)
        others.submit(others.least_loaded(3), one, now)
    ended += others.finished_until(math.inf)
    return {id(one): at for at, one in ended}


def requests(flights: list[InFlight], arrivals: list[float]) -> Requests:
    """The same as plain numbers."""
    return Requests(
        arrivals,
        [one.prefill_s or 0.0 for one in flights],
        {k: [one.request.num_tokens / one.request.lengths[k] for one in flights] for k in range(4)},
        [(one.request.prompt_tokens or 0) + one.request.num_tokens / 2 for one in flights],
    )
