"""Acceptance learned from drafts: survival posteriors that are pooled, forgotten and merged.

S_j is the probability that the first j drafts of a step are all accepted, and the acceptance
length at draft length K is AL(K) = 1 + S_1 + ... + S_K. Learned are the conditionals
c_j = S_j / S_(j-1), so an answer served at K teaches every length up to K.

Where a position has little data, c_1 = p and c_j = r·p with r = 0.91: it fits 30 published Qwen
series of acceptance by draft length with an RMSE of 0.016 (controller/data/SOURCES.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from trt_mtp.controller.acceptance_estimate import Estimate, pooled_first
from trt_mtp.controller.app_offset import Apps, app_scope, count_beside, offset, short
from trt_mtp.controller.drift import DriftAlarm, DriftWatch
from trt_mtp.controller.fair_table import FairTable
from trt_mtp.controller.log_odds import shifted
from trt_mtp.controller.position_counts import (
    MAX_POSITIONS,
    Counted,
    PositionCounts,
    counted_to_json,
    read_counted,
    trials,
)

DECAY_RATIO = 0.91  # r above
# Requests of one task differ: SD 0.04 to 0.10 of acceptance within a task, which is an
# intra-request correlation of about 0.02. So n steps of one request count as n / (1 + 0.02 n).
REQUEST_CORRELATION = 0.02
PROFILE = "profile"  # the name of a profile's counts among the peers
OTHERS = "others"  # the name of the sum of all other gateways' counts
KNOWN_STEPS = 200  # effective ones of a cell, from which on its drift is watched
MAX_SESSIONS = 4096
MAX_TENANTS = 1024
# effective steps of a tenant from which on they count for others by half, then less and less
TENANT_STEPS = 400.0

# how many effective steps of data outweigh the level above
PRIOR_WEIGHT = {
    "all": 400.0, "task": 60.0, "cell": 60.0, "tenant": 120.0, "app": 25.0, "session": 100.0
}  # fmt: skip
LEVELS = ("task", "cell", "tenant")


class AcceptanceKey(NamedTuple):
    """The keys of acceptance, which depends on neither load nor context length."""

    task: str
    temperature_band: str  # greedy | low | high
    thinking: bool

    def __str__(self) -> str:
        """`coding/low/thinking`, the form in files."""
        return f"{self.task}/{self.temperature_band}/{'thinking' if self.thinking else 'direct'}"


def temperature_band(temperature: float) -> str:
    """The band of a sampling temperature.

    >>> [temperature_band(t) for t in (0.0, 0.7, 1.0)]
    ['greedy', 'low', 'high']
    """
    if temperature < 0.05:
        return "greedy"
    return "low" if temperature < 0.85 else "high"


@cache
def prior_conditionals(p: float, decay_ratio: float = DECAY_RATIO) -> tuple[float, ...]:
    """c_1 … c_MAX_POSITIONS of a task whose first draft is accepted with probability `p`."""
    return (p,) + (decay_ratio * p,) * (MAX_POSITIONS - 1)


class _Scopes(NamedTuple):
    """The names of a key's counts."""

    task: str
    cell: str
    tenant: str  # of the request's, empty where it has none


@dataclass(slots=True)
class AcceptanceLearner:
    """Counts of this gateway and, by name, of its peers; estimates read all of them.

    `priors` maps each task to the chance that its first draft is accepted. A profile's counts are
    those of the peer PROFILE: they fade as if they had been the first that the gateways counted.
    An alarm begins an epoch of its cell's counts, which gateways learn of from each other.
    """

    priors: Mapping[str, float]
    replica: str = "local"
    decay_ratio: float = DECAY_RATIO
    version: int = 0
    own: dict[str, PositionCounts] = field(default_factory=dict)
    peers: dict[str, Counted] = field(default_factory=dict)
    _sessions: dict[str, tuple[PositionCounts, PositionCounts]] = field(default_factory=dict)
    _known_sessions: FairTable = field(default_factory=lambda: FairTable(MAX_SESSIONS))
    _apps: Apps = field(default_factory=Apps)
    _num_tenants: int = 0  # scopes of tenants in `own`
    _peer_sums: dict[str, PositionCounts] = field(default_factory=dict)  # by scope, when asked for
    _peer_epochs: dict[str, int] = field(default_factory=dict)
    _watches: dict[str, DriftWatch] = field(default_factory=dict)
    # what the counts of now say, by scope
    _known: dict[str, Estimate] = field(default_factory=dict)
    _offsets: dict[str, float] = field(default_factory=dict)

    def estimate(
        self,
        key: AcceptanceKey,
        tenant: str | None = None,
        session_id: str | None = None,
        app: str | None = None,
    ) -> Estimate:
        """The expected acceptance of a request, pooled from its conversation up to all tasks."""
        known = self._cell(key)
        if tenant and (own := self._counts(scope := _scopes(key, tenant).tenant)) is not None:
            refined = self._known.get(scope)
            if refined is None:
                refined = self._known[scope] = known.refined(own, PRIOR_WEIGHT["tenant"])
            known = refined
        shift = self._offset_of(app_scope(tenant, app)) if app else 0.0
        session = self._sessions.get(session_id) if session_id else None
        if session is not None:
            shift += offset(*session, PRIOR_WEIGHT["session"])
        return known.shifted(shift) if shift else known

    def _cell(self, key: AcceptanceKey) -> Estimate:
        """What is known of a key, whoever asks."""
        scopes = _scopes(key)
        known = self._known.get(scopes.cell)
        if known is None:
            known = Estimate(self._prior(key.task)).shifted(self._offset_of("all"))
            for level, scope in (("task", scopes.task), ("cell", scopes.cell)):
                counts = self._counts(scope)
                if counts is not None:
                    known = known.refined(counts, PRIOR_WEIGHT[level])
            self._known[scopes.cell] = known
        return known

    def _first(self, key: AcceptanceKey, tenant: str | None) -> tuple[float, float]:
        """That a first draft is accepted, and the steps behind it: as `estimate` says, sooner."""
        scopes = _scopes(key, tenant)
        chance, weight = self._prior(key.task)[0], 0.0
        shift = self._offset_of("all")
        if shift:
            [chance] = shifted((chance,), shift)
        for level, scope in zip(LEVELS, scopes, strict=True):
            counts = self._counts(scope) if scope else None
            if counts is not None:
                chance = pooled_first(counts, chance, PRIOR_WEIGHT[level])
                weight = max(weight, counts.trials[0])
        return chance, weight

    def _prior(self, task: str) -> tuple[float, ...]:
        return prior_conditionals(self.priors[task], self.decay_ratio)

    def _offset_of(self, scope: str) -> float:
        """What was seen beyond what was expected, in logits of the first draft.

        An app's requests have that beyond their tasks and tenant, and all tasks beyond the priors.
        """
        known = self._offsets.get(scope)
        if known is None:
            is_all = scope == "all"
            seen = self._counts(scope)
            expected = self._counts("expected" if is_all else f"expected/{scope}")
            weight = PRIOR_WEIGHT["all" if is_all else "app"]
            known = offset(seen, expected, weight) if seen and expected else 0.0
            if seen:  # or a name that nobody counts would stay here
                self._offsets[scope] = known
        return known

    def update(
        self,
        shares: Mapping[AcceptanceKey, float],
        num_steps: int,
        accepted_per_position: Sequence[int],
        cut_after: int = -1,
        tenant: str | None = None,
        session_id: str | None = None,
        app: str | None = None,
    ) -> DriftAlarm | None:
        """Learn from one answer; `shares` says how much of it belongs to which key (1 at most).

        `cut_after` is that of trt_mtp.serve.engine.base.SpeculationCounters.

        Returns the drift alarm, if it raised one.
        """
        if num_steps <= 0 or not accepted_per_position:
            return None  # K = 0 teaches nothing
        weight = 1 / (1 + REQUEST_CORRELATION * num_steps)
        self.version += 1
        accepted = [float(count) for count in accepted_per_position[:MAX_POSITIONS]]
        tried = trials(num_steps, accepted, cut_after)
        if session_id or app:
            self._count_beside(shares, (tried[0], accepted[0], weight), tenant, session_id, app)
        likeliest = max(shares, key=shares.__getitem__)
        alarm = self._watch(likeliest, tried[0], accepted[0], tenant)
        for key, share in shares.items():
            self._count(key, tried, accepted, weight * share, tenant)
        self._known.clear()
        self._offsets.clear()
        return alarm

    def _count(
        self,
        key: AcceptanceKey,
        tried: Sequence[float],
        accepted: Sequence[float],
        weight: float,
        tenant: str | None,
    ) -> None:
        """Count an answer's drafts wherever they say something, as much as `weight` says."""
        scopes = _scopes(key, tenant)
        common = weight * self._common_share(scopes.tenant)
        self._own_counts(scopes.task, scopes.task).count(tried, accepted, common)
        self._own_counts(scopes.cell, scopes.cell).count(tried, accepted, common)
        if tenant and self._may_add_tenant(scopes.tenant):
            self._own_counts(scopes.tenant, scopes.cell).count(tried, accepted, weight)
        # all tasks together hold counts beside what the priors expected of the same steps
        expected = [c * count for c, count in zip(self._prior(key.task), tried, strict=False)]
        for scope, held in (("all", accepted), ("expected", expected)):
            self._counts_here(scope).count(tried, held, common)

    def _count_beside(
        self,
        shares: Mapping[AcceptanceKey, float],
        answer: tuple[float, float, float],  # first drafts tried and accepted, and their weight
        tenant: str | None,
        session_id: str | None,
        app: str | None,
    ) -> None:
        """What a conversation and an app have beyond what is known without them."""
        firsts = [(share, self._first(key, tenant)[0]) for key, share in shares.items()]
        total = sum(shares.values())
        if session_id:
            shift = self._offset_of(app_scope(tenant, app)) if app else 0.0
            known = shifted([chance for _, chance in firsts], shift)
            chance = sum([share * c for c, (share, _) in zip(known, firsts, strict=True)]) / total
            count_beside(*self._session(session_id, tenant), chance, *answer)
        if app:
            chance = sum([share * chance for share, chance in firsts]) / total
            scope = app_scope(tenant, app)
            count_beside(*self._apps.counted(self.own, tenant, scope), chance, *answer)

    def _common_share(self, tenant_scope: str) -> float:
        """How far an answer of a tenant counts for all others: the less, the more it has had.

        Answers of one tenant are alike, so that few of them say what it says of the others.
        """
        counts = self.own.get(tenant_scope)
        return 1.0 if counts is None else TENANT_STEPS / (TENANT_STEPS + counts.trials[0])

    def _session(
        self, session_id: str, tenant: str | None
    ) -> tuple[PositionCounts, PositionCounts]:
        gone = self._known_sessions.use(tenant, session_id)
        if gone is not None:
            self._sessions.pop(gone, None)
        return self._sessions.setdefault(session_id, (PositionCounts(), PositionCounts()))

    def _may_add_tenant(self, scope: str) -> bool:
        if scope not in self.own:
            if self._num_tenants >= MAX_TENANTS:
                return False
            self._num_tenants += 1
        return True

    def _counts(self, scope: str) -> PositionCounts | None:
        """The sum over this gateway and its peers; None if none of them has seen the scope."""
        own = self.own.get(scope)
        if not self.peers:
            return own
        others = self._sum_of_peers(scope)
        found = [counts for counts in (others, own) if counts is not None]
        told = self.peers[PROFILE][1].get(scope) if PROFILE in self.peers else None
        if told is not None:
            found.append(told.faded(PositionCounts.total(found)) if found else told)
        if len(found) < 2:
            return found[0] if found else None
        return PositionCounts.total(found)

    def _sum_of_peers(self, scope: str) -> PositionCounts | None:
        """The sum over the peers, added up once per merge; None if no peer has seen the scope."""
        known = self._peer_sums.get(scope)
        if known is None:
            peers = [c for name, (_, c) in self.peers.items() if scope in c and name != PROFILE]
            if peers:
                known = self._peer_sums[scope] = PositionCounts.total([c[scope] for c in peers])
        return known

    def _watch(
        self, key: AcceptanceKey, num_tried: float, num_accepted: float, tenant: str | None
    ) -> DriftAlarm | None:
        """Raise the drift alarm for a known cell whose first drafts keep missing the expected."""
        chance, weight = self._first(key, tenant)
        if weight < KNOWN_STEPS or num_tried <= 0:
            return None
        scopes = _scopes(key)
        watch = self._watches.setdefault(scopes.cell, DriftWatch(REQUEST_CORRELATION))
        num_observations = watch.num_observations + 1
        direction = watch.add(num_tried, num_accepted, chance)
        if not direction:
            return None
        for scope in (scopes.task, scopes.cell):
            counts = self._own_counts(scope, scope)
            counts.advance(counts.epoch + 1)
        return DriftAlarm(key, direction, num_observations)

    def _own_counts(self, scope: str, epoch_of: str) -> PositionCounts:
        """This gateway's counts of `scope`, at the epoch of the scope `epoch_of`."""
        latest = self._epoch(epoch_of)
        counts = self._counts_here(scope)
        if counts.epoch < latest:
            counts.advance(latest)
        return counts

    def _counts_here(self, scope: str) -> PositionCounts:
        """This gateway's counts of `scope`, none if it is new."""
        counts = self.own.get(scope)
        if counts is None:
            counts = self.own[scope] = PositionCounts()
        return counts

    def _epoch(self, scope: str) -> int:
        """The number of alarms of a scope that this gateway knows of."""
        own = self.own.get(scope)
        return max(own.epoch if own else 0, self._peer_epochs.get(scope, 0))

    def _learn_epochs(self) -> None:
        """Of alarms elsewhere: what a peer saw need not be seen here again."""
        for _, counts in self.peers.values():
            for scope, peer in counts.items():
                if peer.epoch > self._epoch(scope):
                    self._peer_epochs[scope] = peer.epoch
                    self._watches.pop(scope, None)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Merge the state of other gateways; the newest counts of each gateway win.

        Merging is associative, commutative and idempotent. Raises ValueError for a state that
        isn't one.
        """
        read = {str(name): read_counted(value) for name, value in state["replicas"].items()}
        for name, (version, counts) in read.items():
            if name == self.replica:
                if version > self.version:
                    self.version, self.own, self._apps = version, counts, Apps.of(counts)
                    self._num_tenants = sum(scope.startswith("tenant/") for scope in counts)
            elif version > self.peers.get(name, (-1, {}))[0]:
                self.peers[name] = (version, counts)
        self._use_peers()

    def replace_others(self, others: Counted, newer: Mapping[str, float]) -> None:
        """Take over the sum of what all others have counted, in place of any before.

        Forgets own counts for the `newer` trials by scope, as one gateway that had counted all.
        """
        for scope in newer.keys() & self.own.keys() & others[1].keys():
            self.own[scope].fade(newer[scope], others[1][scope])
        told = {PROFILE: self.peers[PROFILE]} if PROFILE in self.peers else {}
        self.peers = {**told, OTHERS: others}
        self._use_peers()

    def _use_peers(self) -> None:
        self._learn_epochs()
        self._num_tenants = sum(scope.startswith("tenant/") for scope in self.own)
        self._peer_sums.clear()
        self._known.clear()
        self._offsets.clear()

    def to_json(self) -> dict[str, Any]:
        """The counts by gateway, without those of conversations."""
        known = {**self.peers, self.replica: (self.version, self.own)}
        return {
            "replicas": {name: counted_to_json(counted) for name, counted in sorted(known.items())}
        }


@cache
def _scopes_of(key: AcceptanceKey) -> _Scopes:
    return _Scopes(f"task/{key.task}", f"cell/{key}", "")


def _scopes(key: AcceptanceKey, tenant: str | None = None) -> _Scopes:
    known = _scopes_of(key)
    return known._replace(tenant=f"tenant/{short(tenant)}/{key}") if tenant else known
