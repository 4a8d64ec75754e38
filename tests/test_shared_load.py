"""What the workers of a gateway tell each other of their load."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trt_mtp.controller.gateway import shared_load
from trt_mtp.controller.gateway.shared_load import (
    MAX_KEYS,
    LoadPlace,
    SharedLoad,
    clear,
    make_files,
)

Changes = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["k0", "k1", "k3@a:1"]), st.integers(0, 99)),
    max_size=40,
)


@given(Changes)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_each_worker_sees_the_sum_of_the_others(
    tmp_path: Path, changes: list[tuple[int, str, int]]
) -> None:
    """Whatever is published in whatever order, others(key) is the sum of the others' latest."""
    make_files(tmp_path, 3)
    workers = [SharedLoad(LoadPlace(tmp_path, index, 3)) for index in range(3)]
    latest: dict[tuple[int, str], int] = {}
    for index, key, count in changes:
        workers[index].publish(key, count)
        latest[index, key] = count
        for reader, worker in enumerate(workers):
            expected = sum(n for (i, k), n in latest.items() if k == key and i != reader)
            assert worker.others(key) == expected


def test_a_worker_that_is_gone_counts_for_nothing_and_its_successor_anew(tmp_path: Path) -> None:
    """The keys keep their places, so that what readers remember stays right."""
    make_files(tmp_path, 2)
    one, two = (SharedLoad(LoadPlace(tmp_path, index, 2)) for index in range(2))
    one.publish("k0", 4)
    one.publish("k3", 7)
    assert two.others("k3") == 7
    clear(tmp_path, 0)
    assert (two.others("k0"), two.others("k3")) == (0, 0)
    again = SharedLoad(LoadPlace(tmp_path, 0, 2))
    again.publish("k3", 2)
    again.publish("k0", 1)
    assert (two.others("k0"), two.others("k3")) == (1, 2)


def test_more_variants_than_fit_cost_nothing_but_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full table takes no more keys and keeps those it has."""
    monkeypatch.setattr(shared_load, "MAX_KEYS", 3)
    make_files(tmp_path, 2)
    one, two = (SharedLoad(LoadPlace(tmp_path, index, 2)) for index in range(2))
    for index in range(5):
        one.publish(f"k{index}", index + 1)
    assert [two.others(f"k{index}") for index in range(5)] == [1, 2, 3, 0, 0]
    assert MAX_KEYS > 16  # all draft lengths of several servers
