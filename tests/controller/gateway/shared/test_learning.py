"""What many gateways learn together, through a real Redis."""

import asyncio
import json
import logging
import random
import tracemalloc
import zlib
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.policy_fixtures import outcome, request, variants
from tests.redis_server import RedisServer, redis_server
from trt_mtp.controller.acceptance import MAX_TENANTS, AcceptanceKey
from trt_mtp.controller.gateway.shared import learning
from trt_mtp.controller.gateway.shared.config import parse_shared
from trt_mtp.controller.gateway.shared.learning import SharedLearning
from trt_mtp.controller.gateway.shared.store import RedisStore
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile

CODING = AcceptanceKey("coding", "low", False)


class Peer:
    """A gateway as the others know it: a policy and its part in the sharing."""

    def __init__(self, server: RedisServer, name: str, *, profile: str = "a") -> None:
        self.policy = Policy(Profile(fingerprint=profile), replica=name)
        self.store = RedisStore(parse_shared(server.url), "qwen_mtp", profile, name)
        self.learning = SharedLearning(self.store, self.policy, frozenset)

    def learn(self, num_answers: int, acceptance: float = 0.5) -> "Peer":
        """Some answers of one task."""
        for _ in range(num_answers):
            decision = self.policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
            self.policy.update(decision, outcome(3, acceptance))
        return self

    @property
    def names(self) -> frozenset[str]:
        """The other gateways from which it learns."""
        return self.learning.sources

    @property
    def expected(self) -> tuple[float, ...]:
        """The acceptance lengths that it expects."""
        return self.policy.acceptance.estimate(CODING).lengths


def counts_of(*scopes: str) -> bytes:
    """What a gateway would write of scopes that nobody asked for."""
    nothing: list[float] = []
    counts = {scope: {"trials": nothing, "successes": nothing} for scope in scopes}
    told = {"version": 1, "counts": counts}
    record = {"schema_version": 1, "fingerprint": "a", "counted": told}
    return zlib.compress(json.dumps(record).encode())


async def exchanged(*peers: Peer) -> None:
    """All of them write, and then all have read what the others wrote."""
    for peer in (*peers, *peers):
        await peer.learning.exchange()


def run(*peers: Peer, steps: Coroutine[Any, Any, None]) -> None:
    """Run `steps`, and close the connections."""

    async def all_steps() -> None:
        try:
            await steps
        finally:
            for peer in peers:
                await peer.store.close()

    asyncio.run(all_steps())


def test_many_gateways_expect_what_one_would(redis: RedisServer) -> None:
    """A hundred that each saw a part of the answers agree, and with one that saw them all."""
    peers = [Peer(redis, f"g{number}").learn(2, 0.6) for number in range(100)]
    one = Policy(Profile(fingerprint="a"))
    for _ in range(200):
        decision = one.choose(request(hint_task="coding"), variants(3), now_s=0.0)
        one.update(decision, outcome(3, 0.6))
    run(*peers, steps=exchanged(*peers))
    for peer in peers:
        assert len(peer.names) == 99
        assert peer.expected == pytest.approx(peers[0].expected)
        assert peer.expected == pytest.approx(one.acceptance.estimate(CODING).lengths, rel=0.01)
    assert Peer(redis, "alone").expected != pytest.approx(peers[0].expected, rel=0.01)


def test_many_gateways_forget_as_one_would(redis: RedisServer) -> None:
    """While acceptance falls slowly, five that share the answers follow as one with all of them."""
    peers, one = [Peer(redis, f"g{number}") for number in range(5)], Peer(redis, "one")

    async def steps() -> None:
        for step in range(60):
            acceptance = 0.8 - 0.15 * max(step - 20, 0) / 40
            for peer in peers:
                peer.learn(4, acceptance)
                one.learn(4, acceptance)
            await exchanged(*peers)

    run(*peers, one, steps=steps())
    told = [peer.policy.acceptance.estimate(CODING) for peer in (*peers, one)]
    assert [each.lengths for each in told] == [pytest.approx(told[-1].lengths, rel=0.01)] * 6
    assert [each.weight for each in told] == [pytest.approx(told[-1].weight, rel=0.1)] * 6


def test_a_shift_that_one_gateway_sees_is_known_to_all(redis: RedisServer) -> None:
    """Its alarm makes the others' counts old, too, so that all expect what it sees."""
    one, other = (Peer(redis, name).learn(40, 0.9) for name in ("one", "other"))
    before = other.expected[3]

    async def steps() -> None:
        await exchanged(one, other)
        one.learn(40, 0.3)
        await exchanged(one, other)

    run(one, other, steps=steps())
    assert other.expected == pytest.approx(one.expected, rel=0.01)
    seen = Peer(redis, "new").learn(40, 0.3).expected[3]
    assert abs(other.expected[3] - seen) < 0.25 * (before - seen)  # without: half of it


def test_nothing_is_left_of_a_gateway_that_ends(redis: RedisServer) -> None:
    """Its key goes, the others forget its counts, and the last one leaves an empty store."""
    peers = [Peer(redis, name).learn(5) for name in ("one", "two", "three")]

    async def steps() -> None:
        await exchanged(*peers)
        assert peers[0].names == {"two", "three"}
        await peers[1].store.leave()
        await peers[0].learning.exchange()
        assert peers[0].names == {"three"}
        assert peers[0].learning.num_gateways == 2
        for peer in (peers[0], peers[2]):
            await peer.store.leave()

    run(*peers, steps=steps())
    assert redis.names() == []


def test_a_gateway_that_was_killed_is_forgotten(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote has a time to live, and so has its name."""
    killed, other = Peer(redis, "killed").learn(5), Peer(redis, "other")

    async def steps() -> None:
        monkeypatch.setattr("trt_mtp.controller.gateway.shared.learning.TTL_S", 0.05)
        await killed.learning.exchange()
        monkeypatch.undo()
        while True:
            await other.learning.exchange()
            if not other.names and other.learning.num_gateways == 1:
                return
            await asyncio.sleep(0.01)

    run(killed, other, steps=steps())
    assert not [key for key in redis.names() if "killed" in key]


def test_a_profile_has_its_own_counts_and_all_gateways_count(redis: RedisServer) -> None:
    """Counts beside another profile mean nothing; limits are those of all gateways of the model."""
    old, new = Peer(redis, "old", profile="a").learn(5), Peer(redis, "new", profile="b")
    run(old, new, steps=exchanged(old, new))
    assert new.names == set()
    assert new.learning.num_gateways == 2


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        zlib.compress(b"[" + b" " * 2**24 + b"]"),
        b"x" * 2**21,
        zlib.compress(b"[]"),
        zlib.compress(b"{"),
        zlib.compress(b'{"schema_version": 9}'),
        counts_of(*map(str, range(5_000))),
        counts_of("x" * 1_000),
        zlib.compress(b'{"schema_version":1,"fingerprint":"a","counted":{"version":1}}'),
        zlib.compress(
            b'{"schema_version":1,"fingerprint":"a","counted":{"version":1,"counts":'
            b'{"all":{"trials":[1],"successes":[2]}}}}'
        ),
        zlib.compress(
            b'{"schema_version":1,"fingerprint":"a","counted":{"version":1,"counts":'
            b'{"all":{"trials":[1e308],"successes":[1e308]}}}}'
        ),
    ],
)
def test_what_no_gateway_wrote_is_left_out_and_said_once(
    redis: RedisServer, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The others' counts are used all the same."""
    strange, good, reader = Peer(redis, "strange"), Peer(redis, "good").learn(3), Peer(redis, "me")

    async def steps() -> None:
        await strange.store.publish(value, 60.0)
        await exchanged(good, reader)
        await reader.learning.exchange()

    with caplog.at_level(logging.WARNING):
        run(strange, good, reader, steps=steps())
    assert reader.names == {"good"}
    assert caplog.text.count("what gateway 'strange' has learned is left out") == 2  # good, reader


def test_clients_that_invent_names_end_no_sharing(redis: RedisServer) -> None:
    """Whatever tenants and apps are called, and however many there are, the counts are read."""
    full, reader = Peer(redis, "full"), Peer(redis, "reader")
    learned = full.policy.acceptance
    for number in range(MAX_TENANTS + 10):
        steps = 10**15 + number
        name = "\U0001f600\x01" * 60 + str(number)  # twelve bytes of JSON, and six
        learned.update({CODING: 1.0}, steps, [steps // 7] * 8, tenant=name, app=str(number))
    run(full, reader, steps=exchanged(full, reader))
    assert reader.names == {"full"}
    assert reader.expected == pytest.approx(full.expected)


def test_what_strange_gateways_write_is_not_kept(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there have been, whether or not it can be read."""
    caplog.set_level(logging.ERROR)  # a warning that is captured keeps what it is about
    reader, num_bytes = Peer(redis, "reader"), 1 << 19

    async def steps() -> None:
        await reader.learning.exchange()
        tracemalloc.start()
        for number in range(16):
            strange = Peer(redis, f"strange {number}")
            value = counts_of("all") if number % 2 else random.randbytes(num_bytes)
            await strange.store.publish(value, 60.0)
            await reader.learning.exchange()
            await strange.store.leave()
            await strange.store.close()
        await reader.learning.exchange()
        assert tracemalloc.get_traced_memory()[0] < 4 * num_bytes
        tracemalloc.stop()

    run(reader, steps=steps())


def test_all_gateways_have_no_more_counts_than_are_read(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A few bytes of Redis are many counts; who comes first is read, and it is said once."""
    monkeypatch.setattr(learning, "MAX_ALL_COUNTS", 2_500)
    reader = Peer(redis, "reader")
    others = [Peer(redis, f"other {number}") for number in range(4)]

    async def steps() -> None:
        for number, other in enumerate(others):
            value = counts_of(*(f"{number} {scope}" for scope in range(1_000)))
            await other.store.publish(value, 60.0 + number)
        await exchanged(reader)

    with caplog.at_level(logging.WARNING):
        run(reader, *others, steps=steps())
    assert reader.names == {"other 0", "other 1"}
    assert caplog.text.count("together they have more than 2500 counts") == 1


def test_a_key_of_another_type_hides_no_other_gateway(redis: RedisServer) -> None:
    """Nor does one that is gone."""
    strange, good, reader = Peer(redis, "strange"), Peer(redis, "good").learn(3), Peer(redis, "me")

    async def steps() -> None:
        await exchanged(strange, good, reader)
        [key] = [name for name in redis.names() if name.endswith(":strange")]
        redis.command("DEL", key)
        await exchanged(good, reader)
        redis.command("LPUSH", key, "x")
        await exchanged(good, reader)

    run(strange, good, reader, steps=steps())
    assert reader.names == {"good"}


def test_an_outage_leaves_what_is_known() -> None:
    """Peers stay while the store is away; when it is back, empty, they write themselves again."""
    with redis_server() as server:
        one, two = Peer(server, "one"), Peer(server, "two").learn(20, 0.9)

        async def steps() -> None:
            await exchanged(one, two)
            expected = one.expected
            server.kill()
            for _ in range(2):
                with fails():
                    await one.learning.exchange()
            assert one.names == {"two"}
            assert one.expected == expected
            server.start()
            await exchanged(two, one)
            assert one.expected == expected

        run(one, two, steps=steps())


@contextmanager
def fails() -> Iterator[None]:
    """What asks the store says in one sentence that it is away."""
    from trt_mtp.errors import TrtMtpError

    with pytest.raises(TrtMtpError):
        yield
