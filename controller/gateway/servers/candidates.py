"""The first of a choice's two levels: for each variant, one of the servers that have it.

Of a few servers taken at random, the least loaded one: with stale knowledge of load, better than
the least loaded of all, which every gateway would choose at once (Mitzenmacher, "How useful is old
information?", IEEE TPDS 11(1), 2000). A gateway uses servers in its own zone first, and of many no
more than its subset, so that it hears often from those that it uses.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.replica import Replica

NUM_TRIED = 3  # servers looked at for each variant
MAX_TRIED = 16  # of many servers, where those have no room
MAX_ON_TRIAL = 4  # grammars that a variant may have to try, one after the other
SCAN_S = 0.05  # between looks at all servers of a variant that were full: looks cost milliseconds

ShareOf = Callable[[Replica, float], float]


@dataclass(frozen=True, slots=True)
class Preference:
    """Which servers a gateway would rather use."""

    gateway: str = ""  # its name: gateways with different names have different subsets
    zone: str = ""  # its own; empty for none
    subset_size: int | None = None  # servers that it uses of each variant; None for all


@dataclass(slots=True)
class Group:
    """A variant on all servers that have it."""

    everywhere: Sequence[Replica]
    tiers: Sequence[Sequence[Replica]]  # those to use first, then more; the last has all
    freed: deque[Replica] = field(default_factory=lambda: deque(maxlen=NUM_TRIED))
    scan_at: float = -math.inf  # monotonic time before which all of them were seen to be full


class Index:
    """The variants at a moment, by what requests look for. Made again when servers change."""

    def __init__(self, replicas: Iterable[Replica], preference: Preference) -> None:
        found = sorted(replicas, key=lambda replica: replica.draft_length)
        self.by_key: Mapping[str, Replica] = {replica.key: replica for replica in found}
        self.draft_lengths = frozenset(replica.draft_length for replica in found)
        self.max_seq_lens = frozenset(replica.max_seq_len for replica in found)
        self.model_names = frozenset(replica.model_name for replica in found)
        self.thinks_by_default = any(
            replica.chat_format.is_open(None, has_tools=False) for replica in found
        )
        grouped: dict[tuple[str, int], list[Replica]] = {}
        for replica in found:
            grouped.setdefault(_group_key(replica), []).append(replica)
        self._groups = {key: Group(each, tiers(each, preference)) for key, each in grouped.items()}

    def candidates(self, now_s: float, *, is_guided: bool = False) -> list[Replica]:
        """One of each variant: where it can be had, one that may be sent a request and has room.

        For one that `is_guided`, where few grammars are to be tried before its own.
        """
        share = _trial_share if is_guided else _share
        found = [_best(group, now_s, share) for group in self._groups.values()]
        if any(replica.health.can_take(now_s) for replica in found):
            return found
        return [_ready(group) for group in self._groups.values()]  # doubtful is better than none

    def note_free(self, replica: Replica) -> None:
        """A place at it is free again: where all seem full, it is looked at first."""
        group = self._groups.get(_group_key(replica))
        if group is not None:
            group.freed.append(replica)

    def others(self, failed: Collection[Backend], now_s: float) -> list[Replica]:
        """Some of each variant for a request that the servers `failed` have failed.

        Those on other servers come first; those that failed it are among them if there are few.
        """
        return [
            replica for group in self._groups.values() for replica in _others(group, failed, now_s)
        ]


def _group_key(replica: Replica) -> tuple[str, int]:
    return replica.name, replica.max_seq_len


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


def _best(group: Group, now_s: float, share_of: ShareOf) -> Replica:
    """The least loaded of a few; where none of them will do, of more, and in the end of all."""
    full = None
    for tier in group.tiers:
        for tried in _tried(tier):
            best, share = _least_loaded(tried, now_s, share_of)
            if best is not None:
                if share < 1:
                    return best
                full = best
    best, share = _least_loaded(group.freed, now_s, share_of)
    if best is not None and share < 1:
        return best
    if full is not None and now_s < group.scan_at:
        return full
    best, share = _least_loaded(group.everywhere, now_s, share_of)
    if share >= 1:
        group.scan_at = now_s + SCAN_S
    return best or group.everywhere[0]


def _tried(tier: Sequence[Replica]) -> Iterator[Sequence[Replica]]:
    num, draw = len(tier), DRAWS.random
    if num > NUM_TRIED:
        yield [tier[int(draw() * num)] for _ in range(NUM_TRIED)]
    yield tier if num <= MAX_TRIED else [tier[int(draw() * num)] for _ in range(MAX_TRIED)]


def _share(replica: Replica, now_s: float) -> float:
    """Of its slots, what is taken."""
    return replica.load(now_s) / replica.max_batch_size


def _trial_share(replica: Replica, now_s: float) -> float:
    """The same of what a request needs whose grammar is to be tried."""
    return max(_share(replica, now_s), replica.num_on_trial / MAX_ON_TRIAL)


def _least_loaded(
    replicas: Sequence[Replica], now_s: float, share_of: ShareOf
) -> tuple[Replica | None, float]:
    """Of those that may be sent a request, and the share of its slots that is taken."""
    best, least = None, math.inf
    for replica in replicas:
        if replica.health.can_take(now_s):
            load = share_of(replica, now_s)
            if load <= least:
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
