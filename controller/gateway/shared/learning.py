"""What gateways have learned of acceptance, exchanged in the background.

Each gateway writes its own counts only, under a key of its own with a time to live, and reads all
others'. Who ends is missing in the next look, and what it counted with it.
"""

import asyncio
import json
import logging
import random
import zlib
from collections.abc import Callable
from sys import intern

from trt_mtp.controller.gateway.shared.store import RedisStore
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.position_counts import Counted, PositionCounts
from trt_mtp.controller.state import own_counts_to_json, read_own_counts
from trt_mtp.errors import InputError

log = logging.getLogger(__name__)

TTL_S = 180.0
MIN_PERIOD_S, MAX_PERIOD_S = 2.0, 30.0
PERIOD_PER_GATEWAY_S = 0.3  # all read all: the load grows with the square of their number
MAX_BYTES = 1 << 21  # of one gateway's counts: more than all cells, tenants and apps take
# names of counts that one gateway may have, and all together; and the length of one
MAX_SCOPES, MAX_ALL_SCOPES, MAX_SCOPE_CHARS = 4_096, 16_384, 256
# counts of all gateways that an exchange reads: those that a hundred write with many tenants
MAX_ALL_COUNTS = 1 << 18
BYTES_PER_COUNT = 256  # of JSON, which count as one more beyond that


class SharedLearning:
    """One gateway's part in it."""

    def __init__(
        self,
        store: RedisStore,
        policy: Policy,
        hosted: Callable[[], frozenset[str]],
        on_count: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`hosted` tells the variants' fingerprints, `on_count` is told the number of gateways."""
        self._store = store
        self._policy = policy
        self._hosted = hosted
        self._on_count = on_count
        self._left_out: dict[str, int] = {}  # hashes of what could not be read, by gateway
        self._has_too_many = False  # counts, at the last exchange
        self._counted: dict[str, dict[str, float]] = {}  # trials by scope, by gateway, as last seen
        self.num_gateways = 1  # as last seen
        self.sources: frozenset[str] = frozenset()  # the gateways whose counts are used

    @property
    def period_s(self) -> float:
        """How long to wait between exchanges, a little different each time."""
        period_s = min(max(PERIOD_PER_GATEWAY_S * self.num_gateways, MIN_PERIOD_S), MAX_PERIOD_S)
        return period_s * random.uniform(0.9, 1.1)

    async def exchange(self) -> None:
        """Write the own counts, read all others'; raises TrtMtpError, which changes nothing."""
        own = own_counts_to_json(self._policy, self._hosted())
        value = zlib.compress(json.dumps(own, separators=(",", ":")).encode(), 1)
        names = await self._store.publish(value, TTL_S)
        values = await self._store.read([name for name in names if name != self._store.name])
        self.num_gateways = max(len(names), 1)
        self._on_count(self.num_gateways)
        await self._take(values)

    async def _take(self, values: dict[str, bytes]) -> None:
        """Add up what the others have counted, one at a time: requests come between."""
        sums: dict[str, PositionCounts] = {}
        newer: dict[str, float] = {}
        num_answers, before, self._counted = 0, self._counted, {}
        self._left_out = {name: told for name, told in self._left_out.items() if name in values}
        room = MAX_ALL_COUNTS
        for name, value in values.items():
            record, cost = await asyncio.to_thread(_record, value)
            room -= cost
            if room < 0:
                break
            read = await asyncio.to_thread(self._readable, name, value, record)
            if read is not None:
                num_answers += read[0]
                self._counted[name] = _add(sums, read[1])
                _add_newer(newer, self._counted[name], before.get(name))
        self._say_too_many(room < 0, len(values))
        self.sources = frozenset(self._counted)
        self._policy.acceptance.replace_others((num_answers, sums), newer)

    def _readable(self, name: str, value: bytes, record: object) -> Counted | None:
        """A gateway's counts; None if they can't be read, which is logged once."""
        try:
            return read_own_counts(_bounded(record), self._policy, self._hosted())
        except InputError as error:
            if self._left_out.get(name) != hash(value):
                self._left_out[name] = hash(value)
                log.warning("what gateway %.100r has learned is left out: it %s", name, error)
            return None

    def _say_too_many(self, has_too_many: bool, num_gateways: int) -> None:
        if has_too_many and not self._has_too_many:
            log.warning(
                "what some of %d gateways have learned is left out: together they have more than "
                "%d counts",
                num_gateways,
                MAX_ALL_COUNTS,
            )
        self._has_too_many = has_too_many


def _add_newer(
    newer: dict[str, float], now: dict[str, float], before: dict[str, float] | None
) -> None:
    """Add the trials that a gateway has counted since it was last seen; none at the first time."""
    if before is not None:
        for scope, counted in now.items():
            newer[scope] = newer.get(scope, 0.0) + max(counted - before.get(scope, 0.0), 0.0)


def _add(sums: dict[str, PositionCounts], counts: dict[str, PositionCounts]) -> dict[str, float]:
    """Add a gateway's counts to the sums by scope, which take over those that are new.

    Those of tenants and apps, which clients name, come after all others. Returns the trials of each
    scope that was added.
    """
    added: dict[str, float] = {}
    for scope, count in sorted(counts.items(), key=lambda item: _is_named(item[0])):
        name = intern(scope)  # one text for all gateways' counts of it
        known = sums.get(name)
        if known is None and len(sums) >= MAX_ALL_SCOPES:
            continue
        added[name] = count.counted
        if known is None:
            sums[name] = count
        else:
            known.include(count)
    return added


def _counts_in(record: object) -> dict[object, object]:
    """The counts of a record by scope; none where it has another form."""
    counted = record.get("counted") if isinstance(record, dict) else None
    counts = counted.get("counts") if isinstance(counted, dict) else None
    return counts if isinstance(counts, dict) else {}


def _bounded(record: object) -> object:
    """The record; raises InputError if it is none, or has more than a gateway writes."""
    if record is None:
        raise InputError("is not what a gateway writes")
    counts = _counts_in(record)
    if len(counts) > MAX_SCOPES or any(len(str(scope)) > MAX_SCOPE_CHARS for scope in counts):
        raise InputError("has more counts than a gateway writes, or longer names")
    return record


def _is_named(scope: str) -> bool:
    return scope.startswith(("tenant/", "app/", "expected/app/"))


def _record(value: bytes) -> tuple[object, int]:
    """The JSON in a value of the store, None if it is none; and how many counts it counts as."""
    try:
        text = zlib.decompressobj().decompress(value, MAX_BYTES)
    except zlib.error:
        return None, 1
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    return record, max(len(_counts_in(record)), len(text) // BYTES_PER_COUNT, 1)
