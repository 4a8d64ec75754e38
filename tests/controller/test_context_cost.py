"""What context costs: the line, its fit, the choice that follows from it, and the load it is at."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calibrate_world import PLAIN_STEP_S, World, run
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.calibrate.context_fit import context_price, missing_price
from trt_mtp.controller.calibrate.plan import next_block
from trt_mtp.controller.calibrate.results import Results
from trt_mtp.controller.context_cost import LEAST, ContextCost
from trt_mtp.controller.gateway.servers.load import LoadMeter, mean_load
from trt_mtp.controller.outcome import MeanLoad
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import ContextPrice, Profile
from trt_mtp.controller.roofline import Roofline

PER_ROW = ContextPrice(at_tokens=500, plain_s=1e-7, draft_s=1e-7)
PRICED = Profile(exploration=0.0, context_cost=PER_ROW)

prices = st.floats(0, 1e-4)


@given(st.floats(0, 1e5), prices, prices, st.integers(0, 8), st.integers(1, 64), st.floats(0, 1e7))
def test_a_step_never_gets_faster_with_context_or_drafts(
    at: float, plain_s: float, draft_s: float, length: int, batch: int, tokens: float
) -> None:
    """More context costs more, at a longer length at least as much more, and nothing is free."""
    cost = ContextCost(at, plain_s, draft_s)
    step_s = cost.step_s(0.02, length, batch, tokens)
    assert step_s >= LEAST * 0.02
    assert cost.step_s(0.02, length, batch, tokens + 1000) >= step_s
    if tokens >= batch * at:
        assert cost.step_s(0.02, length + 1, batch, tokens) >= step_s
    assert cost.step_s(0.02, length, batch, batch * at) == pytest.approx(0.02)
    assert cost.step_s(0.02, length, batch, None) == 0.02


def test_long_contexts_choose_shorter_drafts() -> None:
    """Where each row of a verify step reads all keys and values, context makes drafts dear."""
    code = request(hint_task="coding", max_tokens=256)
    long = replace(code, num_prompt_tokens=60_000)
    short_length = Policy(PRICED).choose(code, variants(0, 1, 3, 5, load=3), now_s=0.0).draft_length
    busy = variants(0, 1, 3, 5, load=3, max_seq_len=1 << 20, context_tokens=180_000.0)
    decision = Policy(PRICED).choose(long, busy, now_s=0.0)
    assert decision.draft_length < short_length
    assert {c.context_tokens for c in decision.candidates} == {180_000 + 60_000 + 128}


def test_on_a_shared_device_all_contexts_count() -> None:
    """Where variants share a machine, so do their caches; those unknown are as long as others."""
    policy = Policy(Profile(shared_device=True, context_cost=PER_ROW))
    known, unknown = variants(0, 3, load=2, context_tokens=8000.0, num_on_device=4)
    hosted = [known, unknown._replace(context_tokens=None)]
    features = request(num_prompt_tokens=1000, max_tokens=200)
    decision = policy.choose(features, hosted, now_s=0.0)
    assert [c.context_tokens for c in decision.candidates] == [16_000 + 1100] * 2


def test_a_steps_time_is_filed_under_the_load_that_it_ran_at() -> None:
    """An answer that began alone and ran among eight says what a step costs among eight."""
    policy = Policy(Profile(exploration=0.0))
    for _ in range(60):
        decision = policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
        step_s = 3 * Profile().step_cost().step_s(3, 8)
        answer = replace(outcome(3), ttft_s=0.1, duration_s=0.1 + 49 * step_s)
        policy.update(decision, replace(answer, on_variant=MeanLoad(8.0, 4000.0)))
    assert policy.cost.step_s(3, 8) == pytest.approx(step_s, rel=0.03)


@pytest.mark.parametrize("load", [MeanLoad(0.0, 1.0), MeanLoad(math.nan, 1.0), MeanLoad(2.0, -1.0)])
def test_a_load_that_can_not_be_is_not_learned_from(load: MeanLoad) -> None:
    """An answer is itself in flight, and no cache holds less than nothing."""
    policy = Policy(PRICED)
    decision = policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
    policy.update(decision, replace(outcome(3), on_variant=load))
    assert policy.num_rejected_outcomes == 1


@given(st.lists(st.tuples(st.floats(0.01, 5), st.booleans(), st.integers(1, 9)), min_size=1))
def test_the_mean_load_is_that_of_the_time_between(events: list[tuple[float, bool, int]]) -> None:
    """Whatever begins and ends: requests and tokens are averaged over time."""
    meter, now_s, in_flight = LoadMeter(), 10.0, [7]
    meter.change(1, 7, now_s)
    begun, requests, tokens = meter.reading(now_s), 0.0, 0.0
    for passed_s, is_begin, size in events:
        now_s += passed_s
        requests += passed_s * len(in_flight)
        tokens += passed_s * sum(in_flight)
        if is_begin or len(in_flight) == 1:
            in_flight.append(size)
            meter.change(1, size, now_s)
        else:
            meter.change(-1, -in_flight.pop(), now_s)
    mean = mean_load(begun, meter.reading(now_s), 0)
    assert mean is not None
    passed_s = now_s - 10.0
    assert mean.requests == pytest.approx(requests / passed_s)
    assert mean.context_tokens == pytest.approx(tokens / passed_s)


def test_two_long_cells_tell_what_context_costs() -> None:
    """A calibration with --context finds both slopes; its other numbers are as without."""
    truth = ContextCost(0.0, 2e-7, 5e-8)
    world = World({"coding": 0.9, "qa": 0.7}, {1: {1: 1.2, 4: 1.4}, 3: {1: 1.5, 4: 2.0}}, 0.01,
                  context=truth)  # fmt: skip
    results = run(world, world.settings(context_tokens=32_768))
    price = context_price(results)
    assert price is not None
    assert price.plain_s == pytest.approx(truth.plain_s, rel=0.15)
    assert price.draft_s == pytest.approx(truth.draft_s, rel=0.35)
    assert {arm.draft_length for arm in results.long_arms} == {0, 3}
    assert max(results.plain_steps(1)) < 1.2 * PLAIN_STEP_S * 1.1
    assert context_price(run(world, world.settings())) is None
    every = run(world, world.settings(context_tokens=32_768, all_cells=True))
    assert context_price(every) is not None


def test_a_long_prompt_that_fails_is_asked_once() -> None:
    """A model that can't take the long prompt leaves the price open and says why, and no loop."""
    world = World({"coding": 0.9}, {3: {1: 1.5}}, failing=frozenset({("coding", 3)}))
    settings, results = world.settings(context_tokens=10**6), Results()
    for _ in range(30):
        block = next_block(settings, results)
        if block is None:
            break
        for length in block.draft_lengths:
            results.add(world.arm(block, length))
    assert len(results.long_arms) == 2
    assert context_price(results) is None
    assert missing_price(settings, results) == "the engine broke"
    assert missing_price(settings, Results()) == "the budget was spent before"
    assert not missing_price(world.settings(), results)


@pytest.mark.parametrize("reads_per_row", [False, True])
def test_the_rooflines_line_is_its_step_time(reads_per_row: bool) -> None:
    """Where memory is what a step waits for, T is the line at any length, load and context."""
    shape = find_model("qwen3.6-35b-a3b-fp8").shape
    machine = Roofline(shape, find_gpu("h100-80gb"), reads_per_row=reads_per_row)
    cost = machine.step_cost((1, 3, 5), 1024)
    for length, batch, tokens in ((0, 4, 131_072), (3, 16, 32_768), (5, 1, 8_000)):
        step_s = machine.step_s(length, batch, batch * tokens)
        assert cost.step_s(length, batch, batch * tokens) == pytest.approx(step_s, rel=0.01)
