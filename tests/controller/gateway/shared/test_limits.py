"""Tenants' limits through several gateways that share a real Redis, also while it is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.redis_server import RedisServer, redis_server
from trt_mtp.controller.gateway.access.limits import Bucket
from trt_mtp.controller.gateway.access.token_bucket import TokenBucket
from trt_mtp.controller.gateway.shared.config import parse_shared
from trt_mtp.controller.gateway.shared.leased_bucket import LeasedBucket
from trt_mtp.controller.gateway.shared.leased_places import LeasedPlaces
from trt_mtp.controller.gateway.shared.metrics import SharedMetrics
from trt_mtp.controller.gateway.shared.sharing import Sharing
from trt_mtp.controller.gateway.shared.store import (
    MAX_WAIT_S,
    Lease,
    LeaseAsk,
    PlacesAsk,
    RedisStore,
)
from trt_mtp.controller.policy import Policy

NUM_GATEWAYS = 4
RATE = 40.0
PAUSE_S = 0.005  # between a client's requests


def shared(server: RedisServer, steps: "Callable[[list[Sharing]], Awaitable[None]]") -> None:
    """Run `steps` with gateways that know of each other."""

    async def run() -> None:
        gateways = []
        try:
            for number in range(NUM_GATEWAYS):
                policy = Policy(replica=f"g{number}")
                gateways.append(Sharing(parse_shared(server.url), "qwen_mtp", policy))
                await gateways[-1].begin(SharedMetrics(CollectorRegistry()), frozenset)
            for gateway in gateways:
                gateway.limits.num_gateways = NUM_GATEWAYS  # as their next look would say
            await steps(gateways)
        finally:
            for gateway in gateways:
                await gateway.end()

    asyncio.run(run())


async def admitted(bucket: Bucket, until_s: float) -> int:
    """How many requests of a client that never stops are admitted."""
    number = 0
    while (now_s := time.monotonic()) < until_s:
        if bucket.wait_s(now_s) == 0:
            bucket.take(1, now_s)
            number += 1
        await asyncio.sleep(PAUSE_S)
    return number


async def rate(buckets: list[LeasedBucket], for_s: float) -> tuple[int, float]:
    """How many requests all buckets admit together, and how long that really took."""
    began_s = time.monotonic()
    numbers = await asyncio.gather(*(admitted(b, began_s + for_s) for b in buckets))
    return sum(numbers), time.monotonic() - began_s


def test_a_rate_holds_for_all_gateways_together(redis: RedisServer) -> None:
    """A burst, then the rate, whichever gateways are asked."""

    async def steps(gateways: list[Sharing]) -> None:
        buckets = [g.limits.bucket("search", "requests", RATE, RATE) for g in gateways]
        number, took_s = await rate(buckets, 0.8)
        # the burst may be taken twice, once as leases and once as shares; the debt is paid then
        assert 0 < number <= RATE * (took_s + 2) + NUM_GATEWAYS
        more, more_s = await rate(buckets, 0.8)
        assert number + more <= RATE * (took_s + more_s + 2) + NUM_GATEWAYS
        assert more > 0

    shared(redis, steps)


@pytest.mark.parametrize("poison", ["inf", "1e300", "-1e300"])
def test_a_poisoned_store_gives_finite_waits_and_no_more_than_was_asked(
    redis: RedisServer, poison: str
) -> None:
    """Who can write to the store uses up limits or lifts them, and breaks nothing."""

    async def steps() -> None:
        store = RedisStore(parse_shared(redis.url), "qwen_mtp", "", "me")
        await leased(store)
        [key] = redis.names()
        redis.command("SET", key, poison)
        [lease] = await leased(store)
        assert 0 <= lease.granted <= 4
        assert 0 <= lease.wait_s <= MAX_WAIT_S
        await store.close()

    async def leased(store: RedisStore) -> list[Lease]:
        return await store.lease([LeaseAsk("requests:search", RATE, RATE, 0.0, 4.0)])

    asyncio.run(steps())


def test_one_gateway_alone_gets_the_whole_limit(redis: RedisServer) -> None:
    """A tenant whose connection leads to one of four has its limit, not a fourth of it."""

    async def steps(gateways: list[Sharing]) -> None:
        bucket = gateways[0].limits.bucket("search", "requests", 0.001, 80.0)
        number = 0
        while number < 80:
            while bucket.wait_s(now_s := time.monotonic()) == 0:
                bucket.take(1, now_s)
                number += 1
            await asyncio.sleep(PAUSE_S)

    shared(redis, steps)


def test_an_outage_leaves_each_gateway_its_share() -> None:
    """While the store is away all together stay below the limit, and nobody is shut out."""
    with redis_server() as server:

        async def steps(gateways: list[Sharing]) -> None:
            buckets = [g.limits.bucket("search", "requests", RATE, RATE) for g in gateways]
            await rate(buckets, 0.5)
            server.kill()
            await rate(buckets, 0.3)  # until all have noticed
            began_s = time.monotonic()
            numbers = await asyncio.gather(*(admitted(b, began_s + 0.8) for b in buckets))
            took_s = time.monotonic() - began_s
            assert all(numbers)
            assert sum(numbers) <= RATE * (took_s + 2) + NUM_GATEWAYS
            server.start()
            while not any(key.startswith("trt-mtp:1:{qwen_mtp}:bucket") for key in server.names()):
                await rate(buckets, 0.1)

        shared(server, steps)


def test_requests_in_flight_are_counted_through_all_gateways(redis: RedisServer) -> None:
    """Never more than the limit once the store has answered; those that end make room."""

    async def steps(gateways: list[Sharing]) -> None:
        places = [g.limits.places("search") for g in gateways]
        running = [0] * NUM_GATEWAYS
        for _ in range(30):  # all of them at the first, then at the others
            await begin(places, running, 0, limit=8)
        assert running == [8, 0, 0, 0]
        for _ in range(30):
            await begin(places, running, 1, limit=8)
        assert sum(running) <= 8 + 2  # the second's share, before it knew
        while running[0]:
            places[0].add(-1)
            running[0] -= 1
        while running[1] < 8:
            await begin(places, running, 1, limit=8)
        await begin(places, running, 1, limit=8)
        assert running[1] == 8

    shared(redis, steps)


async def begin(places: list[LeasedPlaces], running: list[int], which: int, *, limit: int) -> None:
    """Try to begin a request, then let the gateways talk."""
    places[which].add(+1)
    if places[which].is_over(limit):
        places[which].add(-1)
    else:
        running[which] += 1
    await asyncio.sleep(0.02)


def test_nothing_stays_leased_when_a_gateway_ends(redis: RedisServer) -> None:
    """What it didn't use is there for the others, and of its places nothing is left."""

    async def steps(gateways: list[Sharing]) -> None:
        bucket = gateways[0].limits.bucket("search", "requests", 0.001, 100.0)
        places = gateways[0].limits.places("search")
        places.add(+1)
        assert not places.is_over(8)
        assert bucket.wait_s(time.monotonic()) == 0
        bucket.take(1, time.monotonic())
        while not any(":places:" in key for key in redis.names()):
            await asyncio.sleep(0.01)

    shared(redis, steps)
    [key] = redis.names()
    assert ":bucket:" in key
    full_s = float(redis.command("GET", key).split()[1])
    assert full_s - time.time() == pytest.approx(1 / 0.001, abs=100)  # 1 was used, of 100


def test_places_are_given_back_before_the_store_has_answered() -> None:
    """A gateway may end between the store's step and the answer, which tells of places."""
    places = LeasedPlaces("search", lambda: 1, lambda _: None)
    places.add(+1)
    assert not places.is_over(8)
    assert places.give_back() is None
    assert places.ask(time.monotonic()) is not None
    assert places.give_back() == PlacesAsk("search", running=0, wanted=0, limit=8)


@given(
    st.floats(0.5, 50),
    st.floats(1, 60),
    st.integers(1, 5),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 4), st.sampled_from(["talk", "use", "lose"])),
        max_size=200,
    ),
)
def test_leases_never_add_up_to_more_than_the_bucket_and_the_shares(
    rate_per_s: float, capacity: float, number: int, events: list[tuple[float, int, str]]
) -> None:
    """Whenever they talk to the store, or lose it, bursts and rates hold for all together."""
    store, now_s, taken, num_lost = TokenBucket(rate_per_s, capacity), 100.0, 0, 0
    buckets = [
        LeasedBucket("b", rate_per_s, capacity, lambda: number, lambda b: None)
        for _ in range(number)
    ]
    share = max(capacity / number, 1.0)
    for gap_s, which, event in events:
        now_s += gap_s
        bucket = buckets[which % number]
        if event == "lose":
            bucket.lose(now_s)
            num_lost += 1
        if event == "talk" and (ask := bucket.ask(now_s)) is not None:
            bucket.answer(ask, granted(store, ask, now_s), now_s)
        while bucket.wait_s(now_s) == 0:
            bucket.take(1, now_s)
            taken += 1
        bursts = capacity + (number + num_lost) * share
        assert taken <= bursts + 2 * rate_per_s * (now_s - 100) + 1e-6


def granted(store: TokenBucket, ask: LeaseAsk, now_s: float) -> Lease:
    """What the store's script would answer."""
    store.take(ask.owed, now_s)
    number = 0.0
    while number < ask.wanted and store.wait_s(now_s) == 0:
        store.take(1, now_s)
        number += 1
    return Lease(number, store.wait_s(now_s))
