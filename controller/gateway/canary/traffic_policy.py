"""A policy that obeys a traffic file: each side's requests see that side's variants only."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.filters import can_take
from trt_mtp.controller.gateway.canary.traffic import CANARY, STABLE, Side, Traffic, TrafficFile
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import read_profile
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.state import state_to_json, take_over
from trt_mtp.errors import InputError

log = logging.getLogger(__name__)

POLL_S = 0.5


async def follow(file: TrafficFile, pool: Pool) -> None:
    """Obey the traffic file, for ever; what it names is looked for before that is confirmed."""
    while True:
        if file.poll():
            await pool.look_for(file.names)
        file.confirm()
        await asyncio.sleep(POLL_S)


class TrafficPolicy:
    """Chooses as the policy does, among the variants of the request's side.

    A side that names another profile has a policy of its own, which starts from what was learned.
    """

    def __init__(self, policy: Policy, file: TrafficFile) -> None:
        self._policy, self._file = policy, file
        self._others: dict[str, Policy] = {}  # by profile

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request; the decision says which side it is on."""
        traffic = self._file.traffic
        if traffic is None:
            return self._policy.choose(features, variants, now_s=now_s)
        name = traffic.side(features.session_id)
        offered = _offered(_side(traffic, name), features, variants)
        if name == CANARY and all(variant.is_full for variant in offered):
            # or not ready, or not of the draft length that the client asks for
            name = STABLE
            offered = _offered(traffic.stable, features, variants)
        policy = self._policy_of(_side(traffic, name))
        decision = policy.choose(features, offered or variants, now_s=now_s)
        return decision._replace(side=name)

    def home(self, session_id: str | None) -> str:
        """Where the policy of the conversation's side sent its last request."""
        traffic = self._file.traffic
        side = _side(traffic, traffic.side(session_id)) if traffic else None
        return (self._policy_of(side) if side else self._policy).home(session_id)

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm | None:
        """Teach the policy that decided."""
        traffic = self._file.traffic
        side = _side(traffic, decision.side) if traffic else None
        return (self._policy_of(side) if side else self._policy).update(decision, outcome)

    def _policy_of(self, side: Side) -> Policy:
        if side.profile is None:
            return self._policy
        if side.profile not in self._others:
            self._others[side.profile] = self._other(Path(side.profile))
        return self._others[side.profile]

    def _other(self, profile: Path) -> Policy:
        """A policy with another profile; a profile that can't be read leaves the one that is."""
        try:
            policy = Policy(read_profile(profile))
        except InputError as error:
            log.error("the profile in use stays: %s", error)
            return self._policy
        with suppress(InputError):  # learned with another profile: start from this one
            take_over(state_to_json(self._policy), policy)
        return policy


def _side(traffic: Traffic, name: str) -> Side:
    return traffic.canary if name == CANARY and traffic.canary else traffic.stable


def _offered(
    side: Side, features: RequestFeatures, variants: Sequence[VariantState]
) -> list[VariantState]:
    """The side's variants, when one of them can be expected to serve."""
    named: Collection[str] = set(side.variants)
    found = [variant for variant in variants if variant.name.partition("@")[0] in named]
    return found if any(can_take(variant, features) for variant in found) else []
