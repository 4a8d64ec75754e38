"""The first level of a choice: which server stands for each variant."""

import time
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.lease_fixtures import BackendDouble, replica_of
from trt_mtp.controller.gateway.servers.candidates import (
    NUM_TRIED,
    SCAN_S,
    Index,
    Preference,
    tiers,
)
from trt_mtp.controller.gateway.servers.load import DECAY_S, OtherLoad
from trt_mtp.controller.gateway.servers.replica import Replica

NOWHERE = Preference()


def server(number: int, zone: str = "") -> Any:
    """A double of a server, with an address and a zone."""
    found = BackendDouble()
    found.target, found.zone = f"10.0.0.{number}:8001", zone
    return found


def fleet(num_servers: int, zones: str = "a", lengths: tuple[int, ...] = (0, 3)) -> list[Replica]:
    """Ready variants on servers in these zones, in turn."""
    servers = [server(number, zones[number % len(zones)]) for number in range(num_servers)]
    return [replica_of(f"k{k}@{each.target}", each) for each in servers for k in lengths]


@given(
    st.lists(st.tuples(st.sampled_from((0, 1, 3)), st.integers(0, 9), st.booleans()), min_size=1),
)
def test_a_variant_that_can_be_had_is_offered(variants: list[tuple[int, int, bool]]) -> None:
    """Whatever the others do: one of each draft length, free if any of that length is."""
    replicas = []
    for number, (length, running, is_ready) in enumerate(variants):
        replica = replica_of(f"k{length}@{number}", server(number))
        replica.num_running = running
        replica.health.poll(is_ready, 0.0)
        replicas.append(replica)
    found = Index(replicas, NOWHERE).candidates(time.monotonic())
    assert [r.draft_length for r in found] == sorted({r.draft_length for r in replicas})
    for chosen in found:
        same = [r for r in replicas if r.draft_length == chosen.draft_length]
        if any(r.is_ready for r in same):
            assert chosen.is_ready
        if any(r.is_ready and r.num_running < 8 for r in same):
            assert chosen.num_running < 8


def test_few_servers_are_all_looked_at() -> None:
    """The least loaded one is found, by the share of its slots."""
    replicas = fleet(NUM_TRIED, lengths=(3,))
    for number, replica in enumerate(replicas):
        replica.num_running = number + 1
    replicas[0].max_batch_size = 2
    (chosen,) = Index(replicas, NOWHERE).candidates(0.0)
    assert chosen is replicas[1]


def test_many_servers_share_the_load() -> None:
    """Placed one after the other, requests spread so that none has twice the mean."""
    replicas = fleet(100, lengths=(3,))
    index = Index(replicas, NOWHERE)
    for _ in range(400):
        (chosen,) = index.candidates(0.0)
        chosen.num_running += 1
    assert max(r.num_running for r in replicas) < 8


def test_the_own_zone_comes_first() -> None:
    """Until it is full or not ready; then any other."""
    replicas = fleet(9, "abc", lengths=(3,))
    index = Index(replicas, Preference("g", "b"))
    near = [r for r in replicas if r.backend.zone == "b"]
    assert all(index.candidates(0.0)[0] in near for _ in range(50))
    for replica in near[:2]:
        replica.num_running = 8
    near[2].health.suspect()
    assert all(index.candidates(0.0)[0] not in near for _ in range(50))


def test_subsets_cover_the_fleet_and_move_little() -> None:
    """Gateways differ; all servers are used; one that goes takes only its place with it."""
    replicas = fleet(40, lengths=(3,))
    used = Counter[str]()
    for gateway in range(50):
        preference = Preference(f"gateway-{gateway}", subset_size=10)
        subset = tiers(replicas, preference)[0]
        assert len(subset) == 10
        used.update(r.key for r in subset)
        gone = subset[0]
        rest = tiers([r for r in replicas if r is not gone], preference)[0]
        assert len(set(rest) - set(subset)) == 1
    assert len(used) == 40


def test_a_subset_without_room_is_left() -> None:
    """Every server is used before a request waits."""
    replicas = fleet(40, lengths=(3,))
    preference = Preference("g", subset_size=5)
    subset = tiers(replicas, preference)[0]
    for replica in subset:
        replica.num_running = 8
    (chosen,) = Index(replicas, preference).candidates(0.0)
    assert chosen not in subset
    assert chosen.num_running == 0


def test_a_full_fleet_costs_no_look_at_all_of_it() -> None:
    """A place that is freed is found at once, others soon; until then a full one stands for all."""
    replicas = fleet(1_000, lengths=(3,))
    for replica in replicas:
        replica.num_running = 8
    index = Index(replicas, NOWHERE)
    assert index.candidates(100.0)[0].num_running == 8
    freed, found = replicas[700], replicas[300]
    freed.num_running = found.num_running = 7
    index.note_free(freed)
    assert index.candidates(100.0)[0] in (freed, found)
    freed.num_running = 8
    assert index.candidates(100.0 + SCAN_S)[0] is found


def test_who_failed_a_request_comes_last() -> None:
    """Other servers are offered for it as long as there are some."""
    replicas = fleet(20, lengths=(0, 3))
    failed = {r.backend for r in replicas[:16]}
    found = Index(replicas, NOWHERE).others(failed, 0.0)
    assert Counter(r.draft_length for r in found) == {0: NUM_TRIED, 3: NUM_TRIED}
    assert not any(r.backend in failed for r in found)


def test_what_others_have_in_flight_fades() -> None:
    """It is what a response said less one's own, and nobody's after a while."""
    load = OtherLoad()
    load.note(6, 2, 100.0)
    assert load.num(100.0) == 4
    assert [load.num(100.0 + DECAY_S * n) for n in (1, 10)] == [1, 0]
    load.note(1, 3, 200.0)  # two that it sent have not arrived
    assert load.num(200.0) == 0
