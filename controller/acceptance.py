"""Acceptance learned from drafts: survival posteriors that are pooled, forgotten and merged.

S_j is the probability that the first j drafts of a step are all accepted, and the acceptance
length at draft length K is AL(K) = 1 + S_1 + ... + S_K. Learned are the conditionals
c_j = S_j / S_(j-1), so an answer served at K teaches every length up to K.

Where a position has little data, c_1 = p and c_j = r·p with r = 0.91: it fits 30 published Qwen
series of acceptance by draft length with an RMSE of 0.016 (controller/data/SOURCES.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trt_mtp.controller.acceptance_estimate import (
    Estimate,
    Precisions,
    estimate,
    pooled,
    sharpened,
)
from trt_mtp.controller.app_offset import Apps, app_scope, count_beside, offset, short
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
MAX_SESSIONS = 4096
MAX_TENANTS = 1024
# effective steps of a tenant from which on they count for others by half, then less and less
TENANT_STEPS = 400.0

# how many effective steps of data outweigh the level above
PRIOR_WEIGHT = {
    "all": 400.0, "task": 60.0, "cell": 60.0, "tenant": 120.0, "app": 25.0, "session": 100.0
}  # fmt: skip


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


def prior_conditionals(p: float, decay_ratio: float = DECAY_RATIO) -> tuple[float, ...]:
    """c_1 … c_MAX_POSITIONS of a task whose first draft is accepted with probability `p`."""
    return (p,) + (decay_ratio * p,) * (MAX_POSITIONS - 1)


def acceptance_lengths(conditionals: Sequence[float]) -> tuple[float, ...]:
    """AL(0) … AL(MAX_POSITIONS).

    >>> [round(al, 3) for al in acceptance_lengths((0.5, 0.5))]
    [1.0, 1.5, 1.75]
    """
    lengths, survival = [1.0], 1.0
    for conditional in conditionals:
        survival *= conditional
        lengths.append(lengths[-1] + survival)
    return tuple(lengths)


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A sustained shift of acceptance that made the learner forget most of a cell."""

    key: AcceptanceKey
    direction: str  # up | down
    num_observations: int  # answers since the cell's last alarm


def _tenant_scope(tenant: str | None, key: AcceptanceKey) -> str:
    return f"tenant/{short(tenant) if tenant else tenant}/{key}"


# conditionals of a cell, what is known of them, and the estimate of both
Pooled = tuple[tuple[float, ...], Precisions, Estimate]


@dataclass(slots=True)
class _Cusum:
    """Page's two-sided cumulative sum over standardised residuals (Biometrika 41, 1954).

    Cells differ in how unlike their requests are, more so where tasks are guessed wrong. So the
    residuals' own variance, over some hundred answers, is the measure if it is larger than 1.
    """

    up: float = 0.0
    down: float = 0.0
    num_observations: int = 0
    variance: float = 1.0

    def add(self, z: float) -> str:
        """The direction of an alarm, or an empty string."""
        z /= math.sqrt(max(self.variance, 1.0))
        z = min(max(z, -4.0), 4.0)
        self.variance += 0.01 * (max(self.variance, 1.0) * z * z - self.variance)
        self.num_observations += 1
        self.up = max(0.0, self.up + z - 0.5)
        self.down = max(0.0, self.down - z - 0.5)
        return "up" if self.up > 8 else "down" if self.down > 8 else ""


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
    _num_tenants: int = 0  # of MAX_TENANTS
    _apps: Apps = field(default_factory=Apps)
    _peer_sums: dict[str, PositionCounts] = field(default_factory=dict)  # by scope, when asked for
    _peer_epochs: dict[str, int] = field(default_factory=dict)
    _cusums: dict[str, _Cusum] = field(default_factory=dict)
    _cache: dict[AcceptanceKey, Pooled] = field(default_factory=dict)

    def estimate(
        self,
        key: AcceptanceKey,
        tenant: str | None = None,
        session_id: str | None = None,
        app: str | None = None,
    ) -> Estimate:
        """The expected acceptance of a request, pooled from its conversation up to all tasks."""
        cached = self._cache.get(key)
        if cached is None:
            cached = self._cache[key] = self._pool_cell(key)
        own_tenant = self._counts(_tenant_scope(tenant, key)) if tenant else None
        session = self._sessions.get(session_id) if session_id else None
        shift = self._offset_of(app_scope(tenant, app)) if app else 0.0
        if session is not None:
            shift += offset(*session, PRIOR_WEIGHT["session"])
        if own_tenant is None and not shift:
            return cached[2]
        conditionals, precisions, known = cached
        weight = known.weight
        if own_tenant is not None:
            conditionals = pooled(own_tenant, conditionals, PRIOR_WEIGHT["tenant"])
            precisions = sharpened(precisions, own_tenant, PRIOR_WEIGHT["tenant"])
            weight = max(weight, own_tenant.trials[0])  # the cell has the same answers
        return estimate(shifted(conditionals, shift) if shift else conditionals, precisions, weight)

    def _offset_of(self, scope: str) -> float:
        """What an app's requests have beyond their tasks and tenant, in logits."""
        seen, expected = self._counts(scope), self._counts(f"expected/{scope}")
        return offset(seen, expected, PRIOR_WEIGHT["app"]) if seen and expected else 0.0

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
        answer = num_steps, accepted_per_position, weight, cut_after
        if session_id:
            seen, expected = self._session(session_id, tenant)
            count_beside(seen, expected, self._chance(shares, tenant, app), *answer)
        if app:
            chance = self._chance(shares, tenant)
            seen, expected = self._apps.counted(self.own, tenant, app_scope(tenant, app))
            count_beside(seen, expected, chance, *answer)
        likeliest = max(shares, key=lambda key: shares[key])
        first_tried = num_steps - (cut_after == 0)
        alarm = self._watch(likeliest, first_tried, accepted_per_position[0], tenant)
        for key, share in shares.items():
            task, cell, own = f"task/{key.task}", f"cell/{key}", _tenant_scope(tenant, key)
            common = weight * share * self._common_share(own)
            scopes = [(task, task, common), (cell, cell, common)]
            if tenant and self._may_add_tenant(own):
                scopes.append((own, cell, weight * share))
            for scope, epoch_of, each in scopes:
                counts = self._own_counts(scope, epoch_of)
                counts.add(num_steps, accepted_per_position, each, cut_after)
            self._add_overall(key, num_steps, accepted_per_position, common, cut_after)
        self._cache.clear()
        return alarm

    def _chance(
        self, shares: Mapping[AcceptanceKey, float], tenant: str | None, app: str | None = None
    ) -> float:
        """That a first draft is accepted, as far as is known without the conversation."""
        known = [(s, self.estimate(key, tenant, None, app)) for key, s in shares.items()]
        chance = sum([share * (estimate.lengths[1] - 1) for share, estimate in known])
        return chance / sum(shares.values())

    def _common_share(self, tenant_scope: str) -> float:
        """How far an answer of a tenant counts for all others: the less, the more it has had.

        Answers of one tenant are alike, so that few of them say what it says of the others.
        """
        counts = self.own.get(tenant_scope)
        return 1.0 if counts is None else TENANT_STEPS / (TENANT_STEPS + counts.trials[0])

    def _add_overall(
        self,
        key: AcceptanceKey,
        num_steps: int,
        accepted: Sequence[int],
        weight: float,
        cut_after: int,
    ) -> None:
        """All tasks together hold counts beside what the priors expected of the same steps."""
        self.own.setdefault("all", PositionCounts()).add(num_steps, accepted, weight, cut_after)
        prior = prior_conditionals(self.priors[key.task], self.decay_ratio)
        tried = trials(num_steps, accepted, cut_after)
        expected = [c * count for c, count in zip(prior, tried, strict=False)]
        counts = self.own.setdefault("expected", PositionCounts())
        counts.add_expected(num_steps, accepted, expected, weight, cut_after)

    def _session(
        self, session_id: str, tenant: str | None
    ) -> tuple[PositionCounts, PositionCounts]:
        gone = self._known_sessions.use(tenant, session_id)
        if gone is not None:
            self._sessions.pop(gone, None)
        return self._sessions.setdefault(session_id, (PositionCounts(), PositionCounts()))

    def _may_add_tenant(self, scope: str) -> bool:
        if scope in self.own:
            return True
        if self._num_tenants >= MAX_TENANTS:
            return False
        self._num_tenants += 1  # the caller adds it
        return True

    def _counts(self, scope: str) -> PositionCounts | None:
        """The sum over this gateway and its peers; None if none of them has seen the scope."""
        others, own = self._sum_of_peers(scope), self.own.get(scope)
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

    def _pool_cell(self, key: AcceptanceKey) -> Pooled:
        conditionals = prior_conditionals(self.priors[key.task], self.decay_ratio)
        shift = self._overall_shift()
        if shift:
            conditionals = shifted(conditionals, shift)
        weight, precisions = 0.0, (0.0,) * MAX_POSITIONS
        for level, scope in (("task", f"task/{key.task}"), ("cell", f"cell/{key}")):
            counts = self._counts(scope)
            if counts is not None:
                conditionals = pooled(counts, conditionals, PRIOR_WEIGHT[level])
                precisions = sharpened(precisions, counts, PRIOR_WEIGHT[level])
                weight = max(weight, counts.trials[0])
        return conditionals, precisions, estimate(conditionals, precisions, weight)

    def _overall_shift(self) -> float:
        """The difference of all tasks together from their priors, in logits of the first draft."""
        seen, expected = self._counts("all"), self._counts("expected")
        return offset(seen, expected, PRIOR_WEIGHT["all"]) if seen and expected else 0.0

    def _watch(
        self, key: AcceptanceKey, num_tried: int, num_accepted: int, tenant: str | None
    ) -> DriftAlarm | None:
        """Raise the drift alarm for a known cell whose first drafts keep missing the expected."""
        expected = self.estimate(key, tenant)
        if expected.weight < 200 or num_tried <= 0:
            return None
        first = expected.lengths[1] - 1
        variance = first * (1 - first) * (1 / num_tried + REQUEST_CORRELATION)
        z = (num_accepted / num_tried - first) / math.sqrt(max(variance, 1e-6))
        task, cell = f"task/{key.task}", f"cell/{key}"
        cusum = self._cusums.setdefault(cell, _Cusum())
        direction = cusum.add(z)
        if not direction:
            return None
        self._cusums[cell] = _Cusum(variance=cusum.variance)
        for scope in (task, cell):
            counts = self._own_counts(scope, scope)
            counts.advance(counts.epoch + 1)
        return DriftAlarm(key, direction, cusum.num_observations)

    def _own_counts(self, scope: str, epoch_of: str) -> PositionCounts:
        """This gateway's counts of `scope`, at the epoch of the scope `epoch_of`."""
        latest = self._epoch(epoch_of)
        counts = self.own.setdefault(scope, PositionCounts())
        if counts.epoch < latest:
            counts.advance(latest)
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
                    self._cusums.pop(scope, None)

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
        self._peer_sums.clear()
        self._cache.clear()

    def to_json(self) -> dict[str, Any]:
        """The counts by gateway, without those of conversations."""
        known = {**self.peers, self.replica: (self.version, self.own)}
        return {
            "replicas": {name: counted_to_json(counted) for name, counted in sorted(known.items())}
        }
