"""Which variant a call goes to: what each could do for it now, and the policy's choice."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from trt_mtp.controller.context_cost import mean_context_tokens
from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.filters import NoVariantError, can_take
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.failure import NotReadyError
from trt_mtp.controller.gateway.hang_detector import HangDetector
from trt_mtp.controller.gateway.lease import Lease, WindingDown
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.scoreboard import Scoreboard, SharedCounter
from trt_mtp.controller.gateway.servers.candidates import MAX_ON_TRIAL
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.policy import RoutingPolicy
from trt_mtp.controller.request import RequestFeatures

log = logging.getLogger(__name__)

Observer = Callable[[Lease], None]


class Router:
    """Gives out leases and counts the places that are taken; knows nothing of connections."""

    def __init__(
        self,
        pool: Pool,
        policy: RoutingPolicy,
        detector: HangDetector,
        scoreboard: Scoreboard,
        metrics: GatewayMetrics,
    ) -> None:
        self.pool = pool
        self.observers: list[Observer] = []  # each is told of every lease that was closed
        self.on_free: Callable[[], None] = _nothing  # told soon after a place is free again
        self._policy = policy
        self._detector = detector
        self._scoreboard = scoreboard
        self._metrics = metrics

    def place(self, call: InferenceCall) -> Lease | None:
        """The call's lease of the variant that the policy chooses; None while all are full.

        Raises NotReadyError if none is ready, TrtMtpError if none could take it at all.
        """
        replicas = {replica.key: replica for replica in self._replicas(call)}
        states = self._states(call, replicas)
        began = time.perf_counter()
        try:
            decision = self._policy.choose(_features(call, states), states, now_s=time.time())
        except NoVariantError as error:
            if error.is_full:
                return None
            if not error.is_ready:
                raise NotReadyError(str(error)) from None
            raise  # what is ready is not for this request
        decision_s = time.perf_counter() - began
        lease = self.lease(call, replicas[decision.variant], decision, self._observe)
        self._metrics.placed(lease, decision_s)
        return lease

    def kind(self, call: InferenceCall) -> tuple[object, ...]:
        """What calls have in common that the same variants can take: they wait in one line."""
        number = call.features.num_prompt_tokens or 0
        limits = self.pool.index.max_seq_lens
        return (
            call.features.hint_draft_length,
            frozenset(replica.key for replica in call.failed_variants),
            bool(call.emitted),
            call.features.min_tokens > 0,
            call.features.is_guided,
            sum(number >= limit for limit in limits),
        )

    def lease(
        self,
        call: InferenceCall,
        replica: Replica,
        decision: Decision,
        observe: Observer,
    ) -> Lease:
        """A place at a variant, whoever chose it; `observe` is told when it is closed.

        A call whose grammar is tried first has none before that is over: bad grammars, each of
        which takes a second or two, would keep all others out.
        """
        self._metrics.in_flight(replica.name, +1)
        if call.is_tried_by(replica):
            self._count_on_trial(replica, +1)
        else:
            self._count_running(replica, call, +1)
        return Lease(
            call,
            replica,
            decision,
            self.pool.public_name,
            self._detector,
            partial(self._closed, observe),
            self._accepted,
        )

    def _replicas(self, call: InferenceCall) -> Sequence[Replica]:
        """A candidate of each variant, and the one where the call's conversation has its cache."""
        index, now_s = self.pool.index, time.monotonic()
        if call.emitted or call.failed_variants:
            failed = {replica.backend for replica in call.failed_variants}
            return index.others(failed, now_s)
        found = index.candidates(now_s, is_guided=call.features.is_guided)
        home = index.by_key.get(self._policy.home(call.features.session_id))
        return found if home is None or home in found else [*found, home]

    def _states(
        self, call: InferenceCall, replicas: Mapping[str, Replica]
    ) -> Sequence[VariantState]:
        """What each variant could do for the call; `excluded` where it is not to have it."""
        for key, replica in replicas.items():
            replica.num_elsewhere = self._running(key).others
            replica.num_on_trial = self._on_trial(key).total
        # an answer that failed somewhere may go on at any length
        wanted = None if call.failed_variants else call.features.hint_draft_length
        states = self.pool.states(list(replicas.values()), wanted)
        for key, replica in replicas.items():
            if replica.num_on_trial >= MAX_ON_TRIAL and call.is_tried_by(replica):
                states[key] = states[key]._replace(is_full=True)
        if not (call.emitted or call.failed_variants):
            return list(states.values())
        excluded = left_out(call, replicas.values(), states)
        return [
            state._replace(excluded=excluded[key]) if key in excluded else state
            for key, state in states.items()
        ]

    def _closed(self, observe: Observer, lease: Lease, winding_down: WindingDown | None) -> None:
        """The place is free when the variant is done with the request, too."""
        free = partial(self._free, lease.replica, lease.call, lease.is_on_trial)
        if winding_down is None:
            free()
        else:
            winding_down.add_done_callback(partial(self._wound_down, lease.replica, free))
        observe(lease)

    def _wound_down(
        self, replica: Replica, free: Callable[[], None], winding_down: WindingDown
    ) -> None:
        if not winding_down.cancelled() and winding_down.exception() is None:
            self._metrics.wound_down(replica.name, winding_down.result().value)
        free()

    def _accepted(self, lease: Lease) -> None:
        """A variant accepts a call's grammar: from now on the call takes a place there."""
        self._count_on_trial(lease.replica, -1)
        self._count_running(lease.replica, lease.call, +1)
        self._tell_free(lease.replica)

    def _free(self, replica: Replica, call: InferenceCall, is_on_trial: bool) -> None:
        self._metrics.in_flight(replica.name, -1)
        if is_on_trial:
            self._count_on_trial(replica, -1)
        else:
            self._count_running(replica, call, -1)
        self._tell_free(replica)

    def _tell_free(self, replica: Replica) -> None:
        self.pool.index.note_free(replica)
        # not here and now: who waits may not be answered from inside another request's end
        asyncio.get_running_loop().call_soon(self.on_free)

    def _observe(self, lease: Lease) -> None:
        for observer in self.observers:
            try:
                observer(lease)
            except Exception:  # what is learned or written down may not cost an answer
                log.exception("of decision %s something is lost", lease.decision.decision_id)

    def _count_running(self, replica: Replica, call: InferenceCall, change: int) -> None:
        # by its sender's word: no more than it can have, or others' decisions would be wrong
        tokens = min(mean_context_tokens(call.features), replica.max_seq_len)
        replica.count_running(change, tokens, time.monotonic())
        self._running(replica.key).add(change)

    def _count_on_trial(self, replica: Replica, change: int) -> None:
        counter = self._on_trial(replica.key)
        counter.add(change)
        replica.num_on_trial = counter.total

    def _on_trial(self, key: str) -> SharedCounter:
        """Requests of each worker whose grammars variant `key` tries."""
        return self._scoreboard.counter("on trial", key)

    def _running(self, key: str) -> SharedCounter:
        """Requests in flight on variant `key` through each worker."""
        return self._scoreboard.counter("running", key)


def _nothing() -> None:
    """For whoever doesn't care."""


def left_out(
    call: InferenceCall, replicas: Iterable[Replica], states: Mapping[str, VariantState]
) -> dict[str, str]:
    """Why variants may not continue a call, by key."""
    excluded = {}
    able = []
    for replica in replicas:
        if call.emitted and not replica.can_continue:
            excluded[replica.key] = "can't continue an answer"
        elif states[replica.key].is_healthy:
            able.append(replica)
    if call.failed_variants:
        chosen = _elsewhere(call, able)
        for replica in able:
            if replica not in chosen:
                what = "" if replica in call.failed_variants else "is on a server that "
                excluded[replica.key] = f"{what}failed this request"
    return excluded


def _elsewhere(call: InferenceCall, able: Sequence[Replica]) -> Sequence[Replica]:
    """Of `able`, those that haven't failed this call, or that are known to be ready after that.

    Those on servers that haven't failed it come first: a server fails with all its variants.
    """
    failed_servers = {replica.backend for replica in call.failed_variants}
    others = [replica for replica in able if replica not in call.failed_variants]
    return (
        [replica for replica in others if replica.backend not in failed_servers]
        or others
        or [replica for replica in able if replica.health.ready_at > call.again_from]
    )


def _features(call: InferenceCall, states: Sequence[VariantState]) -> RequestFeatures:
    """The call's features; its draft length is left open if only another one can continue."""
    features = call.features
    if features.hint_draft_length is None or not call.failed_variants:
        return features
    if any(can_take(state, features) for state in states):
        return features
    return replace(features, hint_draft_length=None)  # the answer is the same at any
