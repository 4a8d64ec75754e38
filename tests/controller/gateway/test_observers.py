"""Learning from ended answers: at once where few end, together where many do, with one effect."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.gateway import observers
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.observers import Learning
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.state import state_to_json

METRICS = GatewayMetrics()
ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(["coding", "writing"]),
        st.sampled_from(["", "a", "b"]),  # tenants, conversations
        st.integers(1, 3),
        st.floats(0.1, 0.99),
    ),
    max_size=12,
)


def ended(policy: Policy, task: str, who: str, draft_length: int, acceptance: float) -> Any:
    """A closed lease, as far as learning looks at it."""
    asked = request(hint_task=task, tenant=who or None, session_id=who or None, app=who or None)
    decision = policy.choose(asked, variants(draft_length), now_s=0.0)
    return SimpleNamespace(decision=decision, outcome=outcome(draft_length, acceptance))


@settings(max_examples=40, deadline=None)
@given(ANSWERS)
def test_what_is_learned_together_is_what_is_learned_one_by_one(answers: list[Any]) -> None:
    """The policies end up with the same counts and step times, to the bit."""
    one_by_one, together = Policy(), Policy()
    leases = [ended(one_by_one, *answer) for answer in answers]

    async def end_all() -> None:
        learning = Learning(together, METRICS)
        for lease in leases:
            learning(lease)
        learning.learn()

    asyncio.run(end_all())
    for lease in leases:
        one_by_one.update(lease.decision, lease.outcome)
    assert state_to_json(together)["cost"] == state_to_json(one_by_one)["cost"]
    assert together.acceptance.to_json() == one_by_one.acceptance.to_json()


def test_the_first_answer_teaches_at_once_and_the_next_ones_soon() -> None:
    """A quiet gateway never waits; a busy one learns after a pause, or when enough has come."""
    policy = Policy()
    lease = ended(policy, "coding", "", 2, 0.8)

    async def end_some() -> list[int]:
        learning, known = Learning(policy, METRICS), []
        for _ in range(3):
            learning(lease)
            known.append(policy.acceptance.version)
        await asyncio.sleep(2 * observers.PAUSE_S)
        known.append(policy.acceptance.version)
        await asyncio.sleep(2 * observers.PAUSE_S)
        learning(lease)
        known.append(policy.acceptance.version)
        for _ in range(observers.MAX_WAITING):
            learning(lease)
        known.append(policy.acceptance.version)
        return known

    assert asyncio.run(end_some()) == [1, 1, 1, 3, 4, 4 + observers.MAX_WAITING]


def test_an_answer_that_breaks_learning_costs_no_other_its_own() -> None:
    """What can't be learned from is left out, whoever waited with it."""
    policy = Policy()
    good = ended(policy, "coding", "", 2, 0.8)
    broken = replace(good.outcome, num_steps=None)
    assert isinstance(broken, Outcome)

    async def end_three() -> None:
        learning = Learning(policy, METRICS)
        for each in (good.outcome, broken, good.outcome):
            learning(SimpleNamespace(decision=good.decision, outcome=each))  # type: ignore[arg-type]
        learning.learn()

    asyncio.run(end_three())
    assert policy.acceptance.version == 2
