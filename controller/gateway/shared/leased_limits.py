"""Tenants' limits through all gateways: leases are exchanged in the background, many at once."""

import asyncio
import time
import weakref
from collections.abc import Sequence

from trt_mtp.controller.gateway.shared.leased_bucket import LeasedBucket
from trt_mtp.controller.gateway.shared.leased_places import TTL_S, LeasedPlaces
from trt_mtp.controller.gateway.shared.store import LeaseAsk, PlacesAsk, RedisStore
from trt_mtp.errors import TrtMtpError

GAP_S = 0.03  # between exchanges, in which what is wanted comes together
SWEEP_S = 1.0  # between looks at what is idle or has to be renewed

Held = LeasedBucket | LeasedPlaces


class LeasedLimits:
    """What `Limits` asks for, of a shared store; `exchange` is called in the background."""

    def __init__(self, store: RedisStore) -> None:
        self.num_gateways = 1  # as last seen
        self._store = store
        self._all: weakref.WeakSet[Held] = weakref.WeakSet()
        self._active: set[Held] = set()  # in use, or not given back yet
        self._wanted: set[Held] = set()  # those of them that may have something to ask now
        self._swept_s = 0.0
        self._is_wanted = asyncio.Event()

    def bucket(self, tenant: str, what: str, rate_per_s: float, capacity: float) -> LeasedBucket:
        """The bucket of what a tenant uses; another rate is another bucket."""
        key = f"{what}:{rate_per_s!r}:{tenant}"
        bucket = LeasedBucket(key, rate_per_s, capacity, lambda: self.num_gateways, self._want)
        self._all.add(bucket)
        return bucket

    def places(self, tenant: str) -> LeasedPlaces:
        """The tenant's places."""
        places = LeasedPlaces(tenant, lambda: self.num_gateways, self._want)
        self._all.add(places)
        return places

    async def wait_wanted(self) -> None:
        """Until something is wanted, GAP_S at least and SWEEP_S at most."""
        await asyncio.sleep(GAP_S)
        try:
            async with asyncio.timeout(SWEEP_S):
                await self._is_wanted.wait()
        except TimeoutError:
            pass

    async def exchange(self) -> bool:
        """Ask for what is wanted; False if there was nothing. Raises TrtMtpError."""
        self._is_wanted.clear()
        now_s = time.monotonic()
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            self._active = {held for held in self._active if held.ask(now_s) or not held.is_idle}
            self._wanted |= self._active
        wanted, self._wanted = self._wanted, set()
        try:
            return await self._exchange([(held, held.ask(now_s)) for held in wanted])
        except TrtMtpError:
            self._wanted |= wanted
            raise

    async def give_back(self) -> None:
        """Give back all that is held; raises TrtMtpError."""
        await self._exchange([(held, held.give_back()) for held in self._active])

    def lose(self) -> None:
        """The store is away."""
        now_s = time.monotonic()
        for held in self._all:
            held.lose(now_s)

    async def _exchange(self, asks: "Sequence[tuple[Held, LeaseAsk | PlacesAsk | None]]") -> bool:
        leases, places = [], []
        for held, ask in asks:
            if isinstance(held, LeasedBucket) and isinstance(ask, LeaseAsk):
                leases.append((held, ask))
            elif isinstance(held, LeasedPlaces) and isinstance(ask, PlacesAsk):
                places.append((held, ask))
        if leases:
            granted = await self._store.lease([ask for _, ask in leases])
            for (bucket, asked), lease in zip(leases, granted, strict=True):
                bucket.answer(asked, lease, time.monotonic())
        if places:
            numbers = await self._store.hold([ask for _, ask in places], TTL_S)
            for (own, wanted), number in zip(places, numbers, strict=True):
                own.answer(wanted, number, time.monotonic())
        return bool(leases or places)

    def _want(self, held: Held) -> None:
        self._active.add(held)
        self._wanted.add(held)
        self._is_wanted.set()
