"""What the drafts teach: pooling, forgetting, drift, merging."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, prior_conditionals
from trt_mtp.controller.acceptance_estimate import Estimate, acceptance_lengths
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.position_counts import PositionCounts
from trt_mtp.controller.profile import MAX_POSTERIOR_STEPS, PUBLISHED_ACCEPTANCE, Profile

CODING = AcceptanceKey("coding", "low", False)
WRITING = AcceptanceKey("writing", "low", False)


def learner(name: str = "local") -> AcceptanceLearner:
    return AcceptanceLearner(PUBLISHED_ACCEPTANCE, name)


def teach(
    brain: AcceptanceLearner, key: AcceptanceKey, accepted: list[int], times: int
) -> list[DriftAlarm]:
    raised = [brain.update({key: 1.0}, 100, accepted) for _ in range(times)]
    return [alarm for alarm in raised if alarm is not None]


def test_acceptance_length_is_one_and_the_sum_of_survivals() -> None:
    """AL(K) = 1 + S_1 + ... + S_K with S_{j+1} = c_{j+1} S_j."""
    assert acceptance_lengths((0.9, 0.8, 0.5)) == pytest.approx((1.0, 1.9, 2.62, 2.98))


def test_without_data_the_prior_holds() -> None:
    """A task nobody has answered has the acceptance of one number and the published decay."""
    expected = acceptance_lengths(prior_conditionals(PUBLISHED_ACCEPTANCE["coding"]))
    assert learner().estimate(CODING).lengths == pytest.approx(expected)


def test_counts_replace_the_prior() -> None:
    """After many answers the estimate is what was counted."""
    brain = learner()
    teach(brain, CODING, [50, 20, 5], 200)
    lengths = brain.estimate(CODING).lengths
    assert lengths[1] == pytest.approx(1.5, abs=0.03)
    assert lengths[3] == pytest.approx(1.75, abs=0.04)


def test_an_answer_teaches_every_shorter_length() -> None:
    """One answer served at K = 3 moves AL(1), AL(2) and AL(3)."""
    brain = learner()
    before = brain.estimate(WRITING).lengths
    teach(brain, WRITING, [95, 90, 85], 20)
    after = brain.estimate(WRITING).lengths
    assert all(after[k] > before[k] + 0.1 for k in (1, 2, 3))


def test_the_first_draft_says_something_of_the_later_ones() -> None:
    """Answers at K = 1 shift AL(5) the same way, less surely."""
    brain = learner()
    before = brain.estimate(CODING).lengths[5]
    teach(brain, CODING, [40], 50)
    assert brain.estimate(CODING).lengths[5] < before - 0.5


def test_no_drafts_teach_nothing() -> None:
    """An answer at K = 0 changes no number."""
    brain = learner()
    brain.update({CODING: 1.0}, 100, [])
    assert brain.to_json() == learner().to_json()


def test_a_shift_of_all_tasks_reaches_tasks_never_seen() -> None:
    """A weaker head shows in tasks that nobody has asked yet."""
    brain = learner()
    for key in (CODING, WRITING):
        teach(brain, key, [40, 15], 60)
    math = AcceptanceKey("math", "low", False)
    assert brain.estimate(math).lengths[1] < learner().estimate(math).lengths[1] - 0.05


def test_conversation_and_tenant_refine_the_task() -> None:
    """A conversation with poor drafts is expected to stay poor; others of its task are not."""
    brain = learner()
    teach(brain, CODING, [90, 80], 50)
    for _ in range(5):
        brain.update({CODING: 1.0}, 100, [30, 10], tenant="a", session_id="s")
    others = brain.estimate(CODING).lengths[2]
    assert brain.estimate(CODING, tenant="a").lengths[2] < others
    assert brain.estimate(CODING, session_id="s").lengths[2] < others - 0.3


def test_one_long_answer_does_not_outweigh_many() -> None:
    """Steps of one request are correlated, so 100,000 of them count as about fifty."""
    brain = learner()
    brain.update({CODING: 1.0}, 100_000, [10_000])
    assert brain.estimate(CODING).lengths[1] > 1.25


def test_old_answers_are_forgotten() -> None:
    """After a change the estimate follows, however long the old state lasted."""
    brain = learner()
    teach(brain, CODING, [90], 2000)
    teach(brain, CODING, [50], 250)
    assert brain.estimate(CODING).lengths[1] == pytest.approx(1.5, abs=0.08)


def test_unlike_requests_raise_few_alarms() -> None:
    """A cell whose requests differ more than most, as after wrong guesses, is not drifting."""
    brain = learner()
    rng = random.Random(3)
    for _ in range(100):
        brain.update({CODING: 1.0}, 100, [80])
    alarms = [
        brain.update({CODING: 1.0}, 100, [60 if rng.random() < 0.15 else 84]) for _ in range(1500)
    ]
    assert sum(alarm is not None for alarm in alarms) <= 2
    assert teach(brain, CODING, [60], 40)


def test_drift_raises_an_alarm_and_steady_traffic_none() -> None:
    """A sustained shift of a known cell is reported with its direction."""
    brain = learner()
    assert teach(brain, CODING, [90], 300) == []
    alarms = teach(brain, CODING, [50], 100)
    assert {(str(a.key), a.direction) for a in alarms} == {("coding/low/direct", "down")}
    assert len(alarms) < 4


def told(source: str, acceptance: float) -> AcceptanceLearner:
    """A learner that knows 4,000 steps of coding from a profile, or from a peer that has gone."""
    trials = [4000.0, 4000 * acceptance]
    counts = {"trials": trials, "successes": [acceptance * count for count in trials]}
    if source == "profile":
        profile = Profile(posteriors={str(CODING): counts})
        brain = AcceptanceLearner(profile.priors())
        brain.merge(profile.learned())
        return brain
    scopes = dict.fromkeys(("task/coding", f"cell/{CODING}"), counts)
    brain = learner()
    brain.merge({"replicas": {"gone": {"version": 1, "counts": scopes}}})
    return brain


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["profile", "gone"]),
    st.floats(0.5, 0.95),
    st.floats(0.5, 0.95),
)
def test_what_was_told_is_unlearned(source: str, said: float, live: float) -> None:
    """However wrong a profile or a vanished peer is, live answers are believed, after few alarms.

    The first alarm discards most of all that was counted before it, whoever counted it.
    """
    brain = told(source, said)
    assert brain.estimate(CODING).lengths[1] == pytest.approx(1 + said, abs=0.06)
    accepted = [round(100 * live), round(100 * live * live)]
    alarms = teach(brain, CODING, accepted, 150)
    assert len(alarms) <= 3
    lengths = brain.estimate(CODING).lengths
    assert lengths[1] == pytest.approx(1 + accepted[0] / 100, abs=0.03 if alarms else 0.06)


def test_a_profile_counts_once_and_fades() -> None:
    """Its counts shrink as live ones come, and don't count again with each further gateway."""
    brain = told("profile", 0.9)
    peer = {"trials": [2000.0], "successes": [1600.0]}
    peers = {"one": {"version": 1, "counts": {f"cell/{CODING}": peer}}}
    brain.merge({"replicas": peers})
    weight = brain.estimate(CODING).weight
    assert weight == pytest.approx(2000 + MAX_POSTERIOR_STEPS / 2)
    brain.merge({"replicas": peers | {"two": peers["one"]}})
    assert brain.estimate(CODING).weight == pytest.approx(4000)


def test_gateways_hear_of_each_others_alarms() -> None:
    """An alarm makes all gateways' older counts old, once, however many of them raise it."""
    one, two = learner("one"), learner("two")
    for brain in (one, two):
        teach(brain, CODING, [90], 200)
    assert teach(one, CODING, [50], 30)
    two.merge(json.loads(json.dumps(one.to_json())))
    one.merge(json.loads(json.dumps(two.to_json())))
    assert two.estimate(CODING).lengths[1] == pytest.approx(one.estimate(CODING).lengths[1])
    assert two.estimate(CODING).lengths[1] < 1.7
    assert teach(two, CODING, [50], 60) == []


answers = st.lists(
    st.tuples(st.sampled_from([CODING, WRITING]), st.integers(1, 200), st.integers(0, 200)),
    max_size=4,
)


def taught(name: str, items: list[tuple[AcceptanceKey, int, int]]) -> dict[str, Any]:
    brain = learner(name)
    for key, steps, accepted in items:
        first = min(steps, accepted)
        for _ in range(30):  # enough for an alarm
            brain.update({key: 1.0}, steps, [first, first // 2])
    return brain.to_json()


@settings(max_examples=40, deadline=None)
@given(answers, answers, answers)
def test_merging_is_associative_commutative_and_idempotent(
    a: list[Any], b: list[Any], c: list[Any]
) -> None:
    """Gateways that exchange states in any order, any number of times, agree."""
    states = [taught(name, items) for name, items in (("a", a), ("b", b), ("c", c))]
    results = []
    for order in itertools.permutations(states):
        brain = learner("reader")
        for state in (*order, order[0]):
            brain.merge(json.loads(json.dumps(state)))
        estimates = [brain.estimate(key).lengths for key in (CODING, WRITING)]
        results.append((brain.to_json(), estimates))
    assert all(result == results[0] for result in results)


@given(answers)
def test_state_round_trips_json(items: list[Any]) -> None:
    """A learner restored from its JSON state estimates the same."""
    brain = learner("a")
    state = taught("a", items)
    brain.merge(json.loads(json.dumps(state)))
    assert brain.to_json() == state


@pytest.mark.parametrize(
    ("trials", "successes"), [([1.0], [2.0]), ([-1.0], [-1.0]), ([float("nan")], [0.0]), ([1], [])]
)
def test_counts_that_cannot_be_are_refused(trials: list[float], successes: list[float]) -> None:
    """More successes than trials, negative, NaN or ragged counts raise ValueError."""
    with pytest.raises(ValueError, match=r"successes|length"):
        PositionCounts.from_json({"trials": trials, "successes": successes})


@given(st.integers(1, 10_000), st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
def test_survival_never_rises_with_depth(steps: int, counts: list[int]) -> None:
    """Whatever was counted, AL(K) grows with K by steps of at most one that shrink."""
    accepted = sorted((min(count, steps) for count in counts), reverse=True)
    brain = learner()
    brain.update({CODING: 1.0}, steps, accepted)
    lengths = brain.estimate(CODING).lengths
    gains = [b - a for a, b in itertools.pairwise(lengths)]
    assert all(0 <= gain <= 1 for gain in gains)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(gains))


def test_what_was_never_drafted_is_less_sure_than_what_was() -> None:
    """Answers at K = 1 say little of AL(5), those at K = 5 much, and neither is ever certain."""
    deviations = []
    for served in (1, 5):
        brain = learner()
        for _ in range(300):
            accepted = [int(80 * 0.8 * 0.73**j) for j in range(served)]
            brain.update({CODING: 1.0}, 80, accepted)
        deviations.append(brain.estimate(CODING).deviations)
    shallow, deep = deviations
    assert shallow[1] == pytest.approx(deep[1], rel=0.1)
    assert shallow[5] > 3 * deep[5] > 0


@given(st.lists(st.floats(0.01, 0.99), min_size=8, max_size=8), st.floats(0, 4000))
def test_deviations_grow_with_the_length_and_shrink_with_trials(
    conditionals: list[float], trials: float
) -> None:
    """More drafts add uncertainty, more trials of every position take some away."""
    counted = Estimate(tuple(conditionals), trials, (((trials,) * 8, 60.0),))
    unknown, known = Estimate(tuple(conditionals)).deviations, counted.deviations
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(known))
    assert all(k <= u + 1e-9 for k, u in zip(known, unknown, strict=True))


def test_a_tenant_with_most_of_the_traffic_is_not_most_of_a_shared_cell() -> None:
    """What one tenant sends, however much, moves the others' expectation little."""
    brain = learner()
    for i in range(600):
        tenant = "bad" if i % 2 else f"t{i % 20}"
        brain.update({CODING: 1.0}, 80, [4 if tenant == "bad" else 72], tenant=tenant)
    others = brain.estimate(CODING).lengths[1] - 1
    assert others > 0.7
    assert brain.estimate(CODING, "t2").lengths[1] - 1 > 0.8
    assert brain.estimate(CODING, "bad").lengths[1] - 1 < 0.2


def test_a_tenants_answers_count_once() -> None:
    """A tenant's own counts are not added to its cell's, which hold them already."""
    brain = learner()
    for _ in range(50):
        brain.update({CODING: 1.0}, 80, [64], tenant="a")
    steps = 50 * 80 / (1 + 0.02 * 80)
    assert brain.estimate(CODING, "a").weight <= steps
