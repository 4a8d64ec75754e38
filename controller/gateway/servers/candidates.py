"""The first of a choice's two levels: for each variant, one of the servers that have it.

Of a few servers taken at random, the least loaded one: with stale knowledge of load, better than
the least loaded of all, which every gateway would choose at once (Mitzenmacher, "How useful is old
information?", IEEE TPDS 11(1), 2000). A gateway uses servers in its own zone first, and of many no
more than its subset, so that it hears often from those that it uses.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.backend import Backend, Replica

NUM_TRIED = 3  # servers looked at for each variant


@dataclass(frozen=True, slots=True)
class Preference:
    """Which servers a gateway would rather use."""

    gateway: str = ""  # its name: gateways with different names have different subsets
    zone: str = ""  # its own; empty for none
    subset_size: int | None = None  # servers that it uses of each variant; None for all


@dataclass(frozen=True, slots=True)
class Group:
    """A variant on all servers that have it."""

    everywhere: Sequence[Replica]
    tiers: Sequence[Sequence[Replica]]  # those to use first, then more; the last has all


class Index:
    """The variants at a moment, by what requests look for. Made again when servers change."""

    def __init__(self, replicas: Iterable[Replica], preference: Preference) -> None:
        found = sorted(replicas, key=lambda replica: replica.draft_length)
        self.by_key: Mapping[str, Replica] = {replica.key: replica for replica in found}
        self.draft_lengths = frozenset(replica.draft_length for replica in found)
        self.max_seq_lens = frozenset(replica.max_seq_len for replica in found)
        self.model_names = frozenset(replica.model_name for replica in found)
        self.thinks_by_default = any(replica.chat_format.is_open(None) for replica in found)
        grouped: dict[tuple[str, int], list[Replica]] = {}
        for replica in found:
            grouped.setdefault((replica.name, replica.max_seq_len), []).append(replica)
        self._groups = [Group(each, tiers(each, preference)) for each in grouped.values()]

    def candidates(self, now_s: float) -> list[Replica]:
        """One of each variant: where it can be had, one that may be sent a request and has room."""
        found = [_best(group, now_s) for group in self._groups]
        if any(replica.health.can_take(now_s) for replica in found):
            return found
        return [_ready(group) for group in self._groups]  # doubtful is better than none

    def others(self, failed: Collection[Backend], now_s: float) -> list[Replica]:
        """Some of each variant for a request that the servers `failed` have failed.

        Those on other servers come first; those that failed it are among them if there are few.
        """
        return [replica for group in self._groups for replica in _others(group, failed, now_s)]


def tiers(replicas: Sequence[Replica], preference: Preference) -> Sequence[Sequence[Replica]]:
    """The replicas of a variant in the order in which a gateway uses them.

    A subset is chosen by rendezvous hashing: when a server goes, only its place is taken anew.
    """
    ordered = sorted(replicas, key=lambda replica: not _is_near(replica, preference))
    if preference.subset_size is not None:
        ranked = sorted(replicas, key=lambda replica: _rank(preference.gateway, replica))
        ordered = sorted(ranked, key=lambda replica: not _is_near(replica, preference))
    subset = ordered[: preference.subset_size]
    near = [r for r in subset if _is_near(r, preference)]
    found: list[Sequence[Replica]] = []
    for tier in (near, subset, ordered):
        if tier and (not found or len(tier) > len(found[-1])):
            found.append(tier)
    return found


def _is_near(replica: Replica, preference: Preference) -> bool:
    return bool(preference.zone) and replica.backend.zone == preference.zone


def _best(group: Group, now_s: float) -> Replica:
    """The least loaded of a few; where none of them will do, the least loaded of all."""
    for tier in group.tiers:
        for tried in _tried(tier):
            best, share = _least_loaded(tried, now_s)
            if best is not None and share < 1:
                return best
    return _least_loaded(group.everywhere, now_s)[0] or group.everywhere[0]


def _tried(tier: Sequence[Replica]) -> Sequence[Sequence[Replica]]:
    if len(tier) <= NUM_TRIED:
        return (tier,)
    few = [tier[int(DRAWS.random() * len(tier))] for _ in range(NUM_TRIED)]
    return (few, tier)


def _least_loaded(replicas: Sequence[Replica], now_s: float) -> tuple[Replica | None, float]:
    """Of those that may be sent a request, and the share of its slots that is taken."""
    best, least = None, 0.0
    for replica in replicas:
        if replica.health.can_take(now_s):
            load = replica.load(now_s) / replica.max_batch_size
            if best is None or load <= least:
                best, least = replica, load
    return best, least


def _ready(group: Group) -> Replica:
    """One that says that it is ready, if any does."""
    ready = [replica for replica in group.everywhere if replica.is_ready]
    return DRAWS.choice(ready or group.everywhere)


def _others(group: Group, failed: Collection[Backend], now_s: float) -> Sequence[Replica]:
    def order(replica: Replica) -> tuple[bool, bool, float]:
        can_take = replica.health.can_take(now_s)
        return replica.backend in failed, not can_take, DRAWS.random()

    if len(group.everywhere) <= NUM_TRIED:
        return group.everywhere
    return sorted(group.everywhere, key=order)[:NUM_TRIED]


def _rank(gateway: str, replica: Replica) -> bytes:
    name = f"{gateway}\n{replica.backend.target}"
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
