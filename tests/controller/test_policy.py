"""Filter, score, pick; and what is learned from outcomes."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.decision import Decision
from trt_mtp.controller.filters import NoVariantError
from trt_mtp.controller.outcome import outcome_problem
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.errors import InputError

QUIET = Profile(exploration=0.0)
CODE = request(hint_task="coding")
FICTION = request(hint_task="writing")


def choose(policy: Policy, features: Any = CODE, hosted: Any = None) -> Decision:
    return policy.choose(features, hosted or variants(0, 1, 3, 5), now_s=0.0)


def test_sure_tasks_get_longer_drafts_than_unsure_ones() -> None:
    """At the same load coding is drafted deeper than fiction."""
    policy = Policy(QUIET)
    assert choose(policy, CODE).draft_length > choose(policy, FICTION).draft_length > 0


def test_load_comes_before_task() -> None:
    """Past the load at which every length loses, nothing is drafted, whatever the task."""
    policy = Policy(QUIET)
    busy = variants(0, 1, 3, 5, load=60, max_batch_size=128)
    assert choose(policy, FICTION, busy).draft_length == 0
    overloaded = variants(0, 3, 5, load=127, max_batch_size=256)
    assert choose(policy, CODE, overloaded).draft_length == 0


def test_the_less_loaded_of_two_equal_variants_wins() -> None:
    """Among replicas of one length the one with fewer requests is taken."""
    a, b = variants(3, 3, load=5)
    picked = choose(Policy(QUIET), CODE, [a, b._replace(name="idle", num_running=0)])
    assert picked.variant == "idle"


def test_on_a_shared_device_load_is_the_sum() -> None:
    """Variants of one machine slow each other."""
    hosted = [v._replace(num_running=v.draft_length) for v in variants(0, 1, 3)]
    decision = choose(Policy(Profile(shared_device=True, exploration=0.0)), CODE, hosted)
    assert {c.load for c in decision.candidates} == {5}
    here, there = (hosted[1]._replace(name=name, device=name) for name in ("here", "there"))
    decision = choose(Policy(Profile(shared_device=True)), CODE, [here, there])
    assert {c.load for c in decision.candidates} == {2}


def test_a_scheduled_variant_is_scored_at_the_length_of_its_batch() -> None:
    """With one request more it runs at that batch's length, so that is what is expected of it."""
    schedule = BatchSchedule.of({2: 5, 4: 3, 64: 1})
    for load, length in ((0, 5), (1, 5), (2, 3), (4, 1), (200, 1)):
        scheduled = variants(5, load=load)[0]._replace(name="scheduled", schedule=schedule)
        fixed = variants(length, load=load)
        decision = choose(Policy(QUIET), CODE, [scheduled, *fixed])
        one, other = decision.candidates
        assert one[1:] == other[1:]
        assert (one.draft_length, decision.draft_length) == (length, length)
    hinted = replace(CODE, hint_draft_length=5)  # names what it was built for
    assert choose(Policy(), hinted, [scheduled, *fixed]).variant == "scheduled"


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", '{"4": "x"}', '{"0": 3}', '{"4": -1}', "[" * 9999]
)
def test_a_parameter_that_is_no_schedule_is_none(text: str) -> None:
    """A foreign model's parameter never keeps its variant from being hosted."""
    assert BatchSchedule.from_json(text) is None
    assert BatchSchedule.from_json('{"16": 1, "4": 3}') == BatchSchedule.of({4: 3, 16: 1})


def test_an_answer_whose_length_changed_teaches_its_first_position_alone() -> None:
    """Later positions were not tried in every step, and its time is of no one length."""
    policy = Policy(QUIET)
    decision = choose(policy, CODE, variants(3))
    steady = outcome(3)
    policy.update(decision, replace(steady, num_draft_tokens=2 * steady.num_steps))
    counts = policy.acceptance.own["task/coding"]
    assert counts.trials[0] > 0
    assert counts.trials[1:] == [0] * 7
    assert policy.cost.num_observed == 0
    policy.update(decision, steady)
    assert counts.trials[2] > 0
    assert policy.cost.num_observed == 1


def test_a_full_variant_costs_its_wait() -> None:
    """Where no slot is free the wait is part of the expected time."""
    full, free = variants(3, 1)
    hosted = [full._replace(num_running=9, max_batch_size=4), free]
    decision = choose(Policy(QUIET), CODE, hosted)
    assert decision.draft_length == 1
    assert decision.candidates[0].wait_s > 0


def test_unhealthy_and_too_short_variants_are_left_out_with_a_reason() -> None:
    """A rejected candidate says why, and never serves."""
    a, b, c = variants(0, 1, 3)
    hosted = [a, b._replace(is_healthy=False), c._replace(max_seq_len=100)]
    decision = choose(Policy(QUIET), request(hint_task="coding", num_prompt_tokens=500), hosted)
    assert decision.variant == "k0"
    assert [c.rejected for c in decision.candidates] == [
        "",
        "is not healthy",
        "holds 100 tokens and the prompt has 500",
    ]


def test_end_tokens_are_held_back_by_those_that_can() -> None:
    """min_tokens goes past variants that can't do it; where none ever can, it is refused."""
    a, b = variants(0, 3)
    hosted = [a, b._replace(takes_min_tokens=False)]
    assert choose(Policy(QUIET), replace(CODE, min_tokens=5), hosted).variant == "k0"
    assert choose(Policy(QUIET), CODE, hosted).variant == "k3"
    with pytest.raises(InputError, match=r"k3 can't hold an end token back \(min_tok"):
        choose(Policy(QUIET), replace(CODE, min_tokens=5), hosted[1:])
    ill = [a._replace(is_healthy=False), hosted[1]]
    with pytest.raises(NoVariantError, match=r"k0 is not healthy; k3 can't hold") as error:
        choose(Policy(QUIET), replace(CODE, min_tokens=5), ill)
    assert error.value.is_ready


def test_a_grammar_is_followed_by_those_that_can() -> None:
    """A guided request goes past variants that can't do it; where none can, it is refused."""
    a, b = variants(0, 3)
    guided = replace(CODE, is_guided=True)
    assert choose(Policy(QUIET), guided, [a, b._replace(takes_guided=False)]).variant == "k0"
    ill = [a._replace(is_healthy=False), b._replace(takes_guided=False)]
    with pytest.raises(NoVariantError, match=r"k3 can't hold an answer to a grammar \(guided_deco"):
        choose(Policy(QUIET), guided, ill)
    with pytest.raises(InputError, match="guided_decoding is not supported by the variants hosted"):
        choose(Policy(QUIET), guided, ill[1:])


def test_a_prompt_too_long_for_all_is_the_requests_fault() -> None:
    """Only where no variant could ever hold it, be it well or not; one that can may come back."""
    a, b = variants(0, 3)
    hosted = [a._replace(max_seq_len=1000), b._replace(max_seq_len=100)]
    long = request(num_prompt_tokens=500)
    ill = [hosted[0]._replace(is_healthy=False), hosted[1]]
    with pytest.raises(NoVariantError, match="k0 is not healthy; k3 holds 100 tokens and the pr"):
        choose(Policy(QUIET), long, ill)
    longer = replace(long, num_prompt_tokens=1000)
    for states in (hosted, ill):
        with pytest.raises(InputError, match=r"has 1000 tokens: with its answer .* at most 1000$"):
            choose(Policy(QUIET), longer, states)
    with pytest.raises(InputError, match="at most 100 at draft length 3"):
        choose(Policy(QUIET), replace(long, hint_draft_length=3), hosted)
    both = replace(long, min_tokens=5)
    with pytest.raises(InputError, match=r"can't hold an end .*; k3 holds 100 tokens and the pr"):
        choose(Policy(QUIET), both, [hosted[0]._replace(takes_min_tokens=False), hosted[1]])


def test_no_variant_left_is_an_error_that_names_each() -> None:
    """Nothing healthy is said in one sentence."""
    with pytest.raises(NoVariantError, match="k0 is not healthy; k3 is not healthy"):
        choose(Policy(), CODE, variants(0, 3, is_healthy=False))
    with pytest.raises(NoVariantError, match="none is hosted"):
        Policy().choose(CODE, [], now_s=0.0)


def test_a_request_may_name_its_draft_length() -> None:
    """The override is followed, explored never, and refused where it isn't hosted."""
    policy = Policy(Profile(exploration=0.5))
    for _ in range(50):
        decision = choose(policy, replace(CODE, hint_draft_length=1))
        assert (decision.draft_length, decision.explored) == (1, False)
    with pytest.raises(InputError, match=r"draft_length is 4: expected auto or .*\(0, 1, 3, 5\)"):
        choose(policy, replace(CODE, hint_draft_length=4))


def test_an_unknown_task_hint_names_the_nearest() -> None:
    """A task that doesn't exist is refused, not guessed."""
    with pytest.raises(InputError, match="did you mean coding"):
        choose(Policy(), request(hint_task="codin"))


def test_ties_go_to_the_shorter_length() -> None:
    """Where two lengths are as good as the uncertainty allows, the shallower one is taken."""
    flat = Profile(
        step_ratio={3: {1: 1.6}, 5: {1: 2.03}}, acceptance={"coding": 0.9}, exploration=0.0
    )
    decision = choose(Policy(flat), CODE, variants(3, 5))
    scores = {c.draft_length: c.score for c in decision.candidates}
    assert scores[5] == 1.0
    assert decision.draft_length == 3
    assert "shorter wins" in decision.reasons[-1]


def test_small_gains_do_not_change_the_length() -> None:
    """A length that was chosen stays until another is better by the hysteresis."""
    profile = Profile(exploration=0.0, hysteresis=0.5)
    policy = Policy(profile)
    first = choose(policy, CODE).draft_length
    for _ in range(100):
        decision = choose(policy, CODE)
        policy.update(decision, outcome(first, 0.6))
    assert choose(policy, CODE).draft_length == first
    assert choose(Policy(QUIET), CODE).draft_length == first


def test_conversations_stay_unless_leaving_pays() -> None:
    """The cost of a re-prefill keeps a long conversation at home, and a long wait moves it."""
    policy = Policy(QUIET)
    chat = request(hint_task="coding", session_id="s", num_prompt_tokens=3000)
    choose(policy, replace(chat, hint_draft_length=1))
    decision = choose(policy, chat)
    assert decision.draft_length == 1
    assert max(c.prefill_s for c in decision.candidates) == pytest.approx(1.5)
    hosted = [v._replace(num_running=64 if v.draft_length == 1 else 0) for v in variants(1, 3)]
    assert choose(policy, chat, [v._replace(max_batch_size=8) for v in hosted]).draft_length == 3


def test_exploration_is_bounded_and_never_for_strict_requests() -> None:
    """About the configured share probes another length; a strict request is always served best."""
    policy = Policy(Profile(exploration=0.1), seed=3)
    explored = sum(choose(policy).explored for _ in range(2000))
    assert 100 < explored < 300
    strict = replace(CODE, latency_class="strict")
    assert not any(choose(policy, strict).explored for _ in range(500))


def test_what_loses_much_is_explored_seldom() -> None:
    """A length whose expected loss is over a quarter is tried by one in ten probes."""
    policy = Policy(Profile(exploration=0.5))
    busy = variants(0, 5, load=127, max_batch_size=256)
    explored = sum(choose(policy, FICTION, busy).explored for _ in range(2000))
    assert 50 < explored < 150


def test_acceptance_that_came_back_is_seen() -> None:
    """Where no drafts looked best for long, a probe finds out that they are again."""
    policy = Policy()
    busy = variants(0, 1, 3, load=15)
    for acceptance, num in ((0.15, 300), (0.92, 4000)):
        for _ in range(num):
            decision = choose(policy, CODE, busy)
            step_s = policy.cost.step_s(decision.draft_length, 16)
            answer = outcome(decision.draft_length, acceptance)
            duration_s = 0.1 + step_s * (answer.num_steps - 1)
            policy.update(decision, replace(answer, duration_s=duration_s))
        if acceptance < 0.5:
            assert choose(policy, CODE, busy).draft_length == 0
    chosen = [choose(policy, CODE, busy).draft_length for _ in range(20)]
    assert sorted(chosen)[10] > 0


def test_the_same_seed_gives_the_same_choices() -> None:
    """All randomness is the policy's own."""
    runs = []
    for _ in range(2):
        policy = Policy(Profile(exploration=0.3), seed=7)
        runs.append([(d.variant, d.seed) for d in (choose(policy) for _ in range(50))])
    assert runs[0] == runs[1]


def test_outcomes_change_the_choice() -> None:
    """A task whose drafts keep failing ends at no drafts or few."""
    policy = Policy(QUIET)
    before = choose(policy, CODE)
    for _ in range(200):
        decision = choose(policy, CODE)
        policy.update(decision, outcome(decision.draft_length, 0.05))
    assert before.draft_length > choose(policy, CODE).draft_length == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"duration_s": math.nan},
        {"duration_s": math.inf},
        {"duration_s": -1.0},
        {"ttft_s": math.nan},
        {"ttft_s": -0.5},
        {"ttft_s": 9e9},
        {"num_steps": -1},
        {"num_draft_tokens": -1},
        {"accepted_per_position": (10, 20, 30)},
        {"accepted_per_position": (-5, -6, -7)},
        {"num_output_tokens": -3},
        {"finish_reason": "error"},
        {"draft_length": 1},
    ],
)
def test_outcomes_that_cannot_be_teach_nothing(changes: dict[str, Any]) -> None:
    """NaN or jumping clocks, impossible counts and another variant's answers are counted only."""
    policy = Policy(QUIET)
    decision = choose(policy, CODE, variants(3))
    policy.update(decision, replace(outcome(3), **changes))
    assert policy.num_rejected_outcomes == 1
    assert policy.acceptance.version == 0


def test_a_wall_clock_that_jumps_changes_no_choice() -> None:
    """When a request came is logged and nothing else: years back, or no number at all."""
    steady, jumping = Policy(QUIET), Policy(QUIET)
    for i, now_s in enumerate((1e9, -1e9, 2e12, math.nan, math.inf, 0.0)):
        one = steady.choose(CODE, variants(0, 1, 3), now_s=float(i))
        other = jumping.choose(CODE, variants(0, 1, 3), now_s=now_s)
        assert one.candidates == other.candidates
        for policy, decision in ((steady, one), (jumping, other)):
            policy.update(decision, outcome(decision.draft_length, 0.6))


def test_an_answers_clock_that_jumps_teaches_acceptance_but_no_step_time() -> None:
    """Time that is possible but absurd leaves the step cost alone, and is counted."""
    policy = Policy(QUIET)
    expected_s = policy.cost.step_s(3, 1)
    decision = choose(policy, CODE, variants(3))
    policy.update(decision, replace(outcome(3), duration_s=1e7))
    assert policy.num_rejected_outcomes == 1
    assert policy.cost.step_s(3, 1) == expected_s
    assert policy.acceptance.version == 1


def test_an_outcome_without_an_answer_is_harmless() -> None:
    """A request that was cancelled before its first token has no time to first token."""
    policy = Policy(QUIET)
    decision = choose(policy, CODE, variants(3))
    empty = replace(
        outcome(3), ttft_s=None, num_steps=0, accepted_per_position=(), finish_reason="cancelled"
    )
    assert outcome_problem(empty) is None
    policy.update(decision, empty)
    assert policy.acceptance.version == 0


def test_decisions_round_trip_json() -> None:
    """A logged decision is the decision."""
    decision = choose(Policy(), request("Write a poem", session_id="s", tenant="t"))
    assert Decision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    with pytest.raises(InputError, match="not a decision record"):
        Decision.from_json({"decision_id": "x"})


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 300), st.booleans()), min_size=1),
    st.floats(0, 2),
    st.text(max_size=50),
)
def test_the_choice_is_always_a_hosted_healthy_variant(
    hosted: list[tuple[int, int, bool]], temperature: float, text: str
) -> None:
    """Whatever is hosted and asked, the pick is one of the usable candidates, scored in 0..1."""
    states = [
        variants(k, load=load)[0]._replace(name=f"v{i}", is_healthy=healthy)
        for i, (k, load, healthy) in enumerate(hosted)
    ]
    policy = Policy(Profile(exploration=0.3))
    features = request(text, temperature=temperature)
    if not any(state.is_healthy for state in states):
        with pytest.raises(NoVariantError):
            policy.choose(features, states, now_s=0.0)
        return
    decision = policy.choose(features, states, now_s=0.0)
    usable = {s.name for s in states if s.is_healthy}
    assert decision.variant in usable
    assert all(0 < c.score <= 1 for c in decision.candidates if not c.rejected)
    assert sum(p for _, p in decision.task_probabilities) == pytest.approx(1)
