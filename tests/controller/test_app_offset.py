"""What an app's requests have in common: learned from any of its tasks, used for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller import app_offset
from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner
from trt_mtp.controller.app_offset import MAX_APPS, app_key
from trt_mtp.controller.log_odds import shifted
from trt_mtp.controller.position_counts import PositionCounts
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE

CODING = AcceptanceKey("coding", "low", False)
WRITING = AcceptanceKey("writing", "low", False)


def learner(name: str = "local") -> AcceptanceLearner:
    return AcceptanceLearner(PUBLISHED_ACCEPTANCE, name)


def teach(brain: AcceptanceLearner, app: str, accepted: int, tenant: str | None = None) -> None:
    """An answer of coding whose first drafts were accepted `accepted` times in 100."""
    brain.update({CODING: 1.0}, 100, [accepted], tenant=tenant, app=app)


def test_one_task_teaches_the_apps_others() -> None:
    """An app whose code is hard to draft is expected to be so in what it writes, too."""
    brain = learner()
    for _ in range(10):
        teach(brain, "hard", 60)
        teach(brain, "easy", 95)
    hard, easy, unknown = (
        brain.estimate(WRITING, app=app).lengths for app in ("hard", "easy", None)
    )
    assert hard[3] < unknown[3] < easy[3]
    assert brain.estimate(WRITING, app="new").lengths == unknown


def test_an_app_that_is_as_its_tasks_has_no_offset() -> None:
    """Counts as expected change nothing, however uncertain the task was."""
    brain = learner()
    expected = round(100 * PUBLISHED_ACCEPTANCE["coding"])
    for _ in range(20):
        teach(brain, "usual", expected)
    with_app = brain.estimate(CODING, app="usual").lengths[1]
    assert with_app == pytest.approx(brain.estimate(CODING).lengths[1], abs=0.01)


def test_tasks_that_are_only_likely_teach_no_offset() -> None:
    """Shares that leave out unlikely tasks are no reason to take an app for an easy one."""
    brain = learner()
    shares = {CODING: 0.5, WRITING: 0.2}
    p = PUBLISHED_ACCEPTANCE
    expected = (0.5 * p["coding"] + 0.2 * p["writing"]) / 0.7
    for _ in range(20):
        brain.update(shares, 100, [round(100 * expected)], app="usual")
    with_app = brain.estimate(CODING, app="usual").lengths[1]
    assert with_app == pytest.approx(brain.estimate(CODING).lengths[1], abs=0.03)


def test_a_tenants_apps_are_its_own() -> None:
    """What one tenant sends under a system prompt says nothing of another tenant's requests."""
    brain = learner()
    for _ in range(20):
        teach(brain, "app", 30, "a")
    assert brain.estimate(WRITING, "a", app="app").lengths[1] < 1.5
    others = brain.estimate(WRITING, "b", app="app").lengths
    assert others == brain.estimate(WRITING, "b").lengths


def test_gateways_learn_of_each_others_apps() -> None:
    """Merged state holds apps; read twice, they count once."""
    one, two = learner("one"), learner("two")
    for _ in range(20):
        teach(one, "app", 30)
    two.merge(one.to_json())
    two.merge(one.to_json())
    assert two.estimate(WRITING, app="app") == one.estimate(WRITING, app="app")


def test_apps_are_forgotten_that_asked_nothing_for_the_longest() -> None:
    """A client with a new system prompt per request takes neither all memory nor others' places."""
    brain = learner()
    for i in range(MAX_APPS + 50):
        teach(brain, f"app{i}", 60)
        teach(brain, "regular", 60)
    assert sum(scope.startswith("app/") for scope in brain.own) == MAX_APPS
    assert sum(scope.startswith("expected/app/") for scope in brain.own) == MAX_APPS
    assert {"app/regular", f"app/app{MAX_APPS + 49}"} <= brain.own.keys()
    again = learner()
    again.merge(brain.to_json())
    teach(again, "one more", 60)
    assert sum(scope.startswith("app/") for scope in again.own) == MAX_APPS


def test_a_tenants_system_prompts_cost_another_none_of_its_own() -> None:
    """Nor its conversations: a full table forgets from who has the most."""
    brain = learner()
    for tenant, count in (("a", 20), ("b", MAX_APPS + 20)):
        for i in range(count):
            teach(brain, f"app{i}", 60, tenant)
    assert sum(scope.startswith("app/a/") for scope in brain.own) == 20
    assert sum(scope.startswith("app/") for scope in brain.own) == MAX_APPS


def test_the_key_is_the_system_prompt_without_its_digits() -> None:
    """The same words are the same app, whatever the date; other words are another one."""
    assert app_key("You help. Today is 2026-11-29.") == app_key("You help. Today is 2027-01-02.")
    assert app_key("You help.") != app_key("You translate.")
    assert app_key("") is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(-9, 9))
def test_shifted_chances_are_chances_and_shift_back(chances: list[float], by: float) -> None:
    """An offset keeps chances between 0 and 1, in their order, and can be taken back."""
    moved = shifted(chances, by)
    assert all(0 <= chance <= 1 for chance in moved)
    assert sorted(moved) == pytest.approx([moved[chances.index(c)] for c in sorted(chances)])
    inside = [min(max(chance, 0.01), 0.99) for chance in chances]
    assert shifted(shifted(inside, by), -by) == pytest.approx(inside, abs=1e-6)


def test_nothing_tried_is_no_offset() -> None:
    """Without a trial there is nothing to compare."""
    counts = PositionCounts()
    assert app_offset.offset(counts, counts, 25.0) == 0.0
