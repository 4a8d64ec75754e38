"""Plans: never dearer than one length, held in the simulator, simple where that is as good."""

from functools import cache

import pytest

from tests.plan_fixtures import deployment, random_case, traffic
from trt_mtp.controller.plan.check import simulate
from trt_mtp.controller.plan.deployment import Deployment, from_profile
from trt_mtp.controller.plan.modes import Targets
from trt_mtp.controller.plan.plan import WORTH, Plan, Wishes, make_plan, shifted
from trt_mtp.controller.plan.text import by_length, reason, to_text
from trt_mtp.controller.plan.traffic import TaskTraffic, Traffic, total_rate
from trt_mtp.controller.profile import ContextPrice, Profile
from trt_mtp.errors import InputError


@cache
def plan(tpot_ms: float = 20.0, spare: int = 0, gpu_cost: float = 1.0) -> Plan:
    """A plan for code, prose and questions on H100s."""
    demand = traffic()
    wishes = Wishes(Targets(tpot_ms), gpus=1000, gpu_cost=gpu_cost, spare=spare)
    return make_plan(deployment(demand), demand, wishes)


def bimodal() -> tuple[Deployment, Traffic]:
    """A machine that pays for drafts, and two tasks of which one gains by them."""
    profile = Profile(
        plain_step_s={1: 0.02, 64: 0.08},
        step_ratio={1: {1: 1.2, 64: 1.5}, 5: {1: 1.6, 64: 2.2}},
        acceptance={"tool_call": 0.97, "roleplay": 0.15},
        prefill_tokens_per_s=1e6,
    )
    demand = {
        "tool_call": TaskTraffic(40, 100, 400), "roleplay": TaskTraffic(40, 100, 400),
    }  # fmt: skip
    return from_profile(profile, "bimodal", "machine", demand), demand


def with_contexts(prompt_tokens: float, context_cost: ContextPrice | None) -> Plan:
    """A machine measured at contexts of 500 tokens, and questions with prompts of this length."""
    profile = Profile(
        plain_step_s={1: 0.02, 32: 0.03},
        step_ratio={3: {1: 1.1, 32: 1.3}},
        context_cost=context_cost,
        prefill_tokens_per_s=1e6,
    )
    demand = {"qa": TaskTraffic(40, prompt_tokens, 400)}
    machine = from_profile(profile, "measured", "machine", demand)
    return make_plan(machine, demand, Wishes(Targets(), gpus=1000))


def test_long_contexts_cost_what_was_measured_of_them() -> None:
    """They take more replicas, and shorter drafts where each draft reads the caches again.

    Contexts as measured change little.
    """
    once = ContextPrice(at_tokens=500, plain_s=2e-8, draft_s=0.0)
    again = ContextPrice(at_tokens=500, plain_s=2e-8, draft_s=6e-8)
    unknown, read_once, read_again = (with_contexts(20_000, one) for one in (None, once, again))
    assert read_once.fleet.num_replicas > unknown.fleet.num_replicas
    lengths = [plan.fleet.groups[0].mode.draft_length for plan in (read_once, read_again)]
    assert lengths == [3, 0]
    before, after = with_contexts(300, None), with_contexts(300, again)
    assert after.tasks["qa"][0].p50 == pytest.approx(before.tasks["qa"][0].p50, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_holds_its_targets_and_is_never_dearer_than_one_length(seed: int) -> None:
    """On random mixes other requests than those it was sized by see the targets held."""
    demand, planned, wishes = random_case(seed)
    made = make_plan(planned, demand, wishes)
    assert made.best_single.cost is None or made.cost <= made.best_single.cost
    for group in made.fleet.groups:
        seen = simulate(planned, demand, group.mode, group.count, group.flow, seed + 1000)
        for tpot, ttft in seen.spreads().values():
            assert tpot.p99 <= 1.1 * (wishes.targets.tpot_ms or float("inf"))
            assert ttft.p99 <= 1.1 * (wishes.targets.ttft_ms or float("inf"))
    rates = {task: one.requests_per_s for task, one in demand.items()}
    for task, rate in rates.items():
        served = sum(group.flow.get(task, 0.0) for group in made.fleet.groups)
        assert served == pytest.approx(rate, rel=1e-4)


def test_one_variant_where_a_mix_is_hardly_cheaper() -> None:
    """Within 2% it is one variant without a router, and the reason says so."""
    made = plan()
    assert made.router_gain <= WORTH
    assert not made.is_mixed
    assert "one variant, K = " in reason(made)
    assert "no router" in reason(made)
    assert "roofline prior" in reason(made)


def test_a_mix_where_tasks_differ() -> None:
    """Tasks of which one gains by drafts and one loses get a length each, and a router."""
    planned, demand = bimodal()
    made = make_plan(planned, demand, Wishes(Targets(), gpus=1000))
    assert made.is_mixed
    assert made.router_gain > WORTH
    assert made.best_single.cost is not None
    assert made.cost < (1 - WORTH) * made.best_single.cost
    drafting = next(group for group in made.fleet.groups if group.mode.draft_length == 5)
    assert drafting.flow["tool_call"] == pytest.approx(demand["tool_call"].requests_per_s)
    assert reason(made).startswith("a router over K = ")


def test_a_tighter_target_costs_more() -> None:
    """Less time per token takes smaller batches and more replicas."""
    loose, tight = plan(), plan(tpot_ms=12)
    assert tight.cost > loose.cost
    assert tight.fleet.groups[0].mode.batch < loose.fleet.groups[0].mode.batch


def test_a_spare_replica_is_one_more_and_may_be_lost() -> None:
    """With N+1 the plan carries its traffic with a replica of any length lost."""
    plain, safe = plan(), plan(spare=1)
    assert safe.fleet.num_replicas == plain.fleet.num_replicas + len(safe.fleet.groups)
    assert "With a replica lost the targets hold." in to_text(safe)
    assert plain.after_loss < 1


def test_the_present_fleet_is_kept_where_it_does() -> None:
    """Of fleets that cost the same, the one with the fewest changes; changes are listed."""
    planned, demand = bimodal()
    made = make_plan(planned, demand, Wishes(Targets(), gpus=1000, present={5: 2, 2: 1}))
    lines = to_text(made)
    assert "remove 1 replica of K = 2" in lines
    same = Wishes(Targets(), gpus=1000, present=by_length(made.fleet))
    assert "nothing to change" in to_text(make_plan(planned, demand, same))


def test_a_task_that_hardly_comes_has_its_times() -> None:
    """However seldom a task is, its latencies are numbers."""
    demand = traffic(20, coding=1.0, writing=1e-6)
    made = make_plan(deployment(demand), demand, Wishes(Targets(), gpus=100))
    tpot, ttft = made.tasks["writing"]
    assert 0 < tpot.p50 <= tpot.p99
    assert 0 < ttft.p50 <= ttft.p99


def test_costs_are_gpus_times_their_price() -> None:
    """Dearer GPUs change the cost and nothing else."""
    cheap, dear = plan(), plan(gpu_cost=2.5)
    assert dear.cost == pytest.approx(2.5 * cheap.cost)
    assert dear.fleet == cheap.fleet


def test_a_shift_keeps_the_requests() -> None:
    """A fifth of the requests turns to one task, and none is lost."""
    demand = traffic()
    turned = shifted(demand, "writing")
    assert total_rate(turned) == pytest.approx(total_rate(demand))
    more = turned["writing"].requests_per_s - demand["writing"].requests_per_s
    assert more == pytest.approx(0.2 * total_rate(demand))


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (Targets(3.0), r"--tpot-p99-ms 3 can't be met for writing: .* ask for [\d.]+ or more"),
        (Targets(None, 20.0), r"--ttft-p99-ms 20 can't be met for .*; ask for \d+ or more"),
        (Targets(20.0), r"--gpus 1 can't carry this traffic within --tpot-p99-ms 20: \d+ of h100"),
    ],
)
def test_a_target_that_cant_be_met_says_what_would(targets: Targets, sentence: str) -> None:
    """The target, the task, and the least that can be asked for; or the GPUs it takes."""
    demand = traffic(60)
    with pytest.raises(InputError, match=sentence):
        make_plan(deployment(demand), demand, Wishes(targets, gpus=1))
