"""Searches for a fleet that end where it would be too dear."""

from tests.plan_fixtures import deployment, traffic
from trt_mtp.controller.plan.groups import Question
from trt_mtp.controller.plan.modes import Targets
from trt_mtp.controller.plan.program import Problem
from trt_mtp.controller.plan.sizing import mixed, single


def test_a_fleet_that_would_be_too_dear_is_none() -> None:
    """A bound on the replicas changes nothing where it is met, and leaves no fleet elsewhere."""
    demand = traffic(60.0)
    rates = {task: one.requests_per_s for task, one in demand.items()}
    question = Question(deployment(demand), demand, Targets(20), Problem(rates, 1000))
    one, mix = single(question, 2), mixed(question)
    assert one is not None
    assert mix is not None
    assert single(question, 2, one.num_replicas) == one
    assert single(question, 2, one.num_replicas - 1) is None
    assert mixed(question, mix.num_replicas) is not None
    assert mixed(question, mix.num_replicas - 1) is None
