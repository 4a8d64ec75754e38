"""What the workers of a gateway tell each other."""

import multiprocessing
import os
import random
import signal
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway_fixtures import wait_until
from trt_mtp.controller.gateway import scoreboard
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat, scoreboard_memory

Changes = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["k0", "k1", "k3@a:1"]), st.integers(-9, 9)),
    max_size=40,
)


def workers_of(memory: str, num_workers: int) -> Sequence[Scoreboard]:
    """The view of each worker."""
    return [Scoreboard(Seat(memory, index, num_workers)) for index in range(num_workers)]


@pytest.fixture
def workers() -> Iterator[Sequence[Scoreboard]]:
    """Two workers of one gateway."""
    with scoreboard_memory(2) as memory:
        yield workers_of(memory, 2)


@given(Changes)
@settings(max_examples=50)
def test_each_worker_sees_the_counts_of_all(changes: list[tuple[int, str, int]]) -> None:
    """Whatever is added in whatever order, under each key they are the sums of what was added."""
    with scoreboard_memory(3) as memory:
        workers = workers_of(memory, 3)
        for index, key, change in changes:
            workers[index].counter("running", key).add(change)
        for key in ("k0", "k1", "k3@a:1"):
            counts = [sum(n for i, k, n in changes if (i, k) == (at, key)) for at in range(3)]
            for index, worker in enumerate(workers):
                line = worker.counter("running", key)
                assert (line.total, line.others) == (sum(counts), sum(counts) - counts[index])


def test_keys_are_told_apart_by_all_their_parts(workers: Sequence[Scoreboard]) -> None:
    """However they are cut, as tenants choose names."""
    keys = [("a", "b"), ("ab",), ("a", "b", ""), ("", "ab"), ("a', 'b",), ("a",), ("é\0" * 200,)]
    for number, key in enumerate(keys, 1):
        workers[0].counter(*key).add(number)
    assert [workers[1].counter(*key).others for key in keys] == list(range(1, len(keys) + 1))


def test_a_time_is_everybody_s(workers: Sequence[Scoreboard]) -> None:
    """What one writes the other reads, and writes over."""
    one, two = (worker.counter("retries").time for worker in workers)
    assert one[0] == 0
    one[0] = 1.5
    assert two[0] == 1.5
    two[0] = 2.5
    assert one[0] == 2.5


def test_a_worker_that_is_gone_counts_for_nothing_and_its_successor_anew() -> None:
    """Its counts end with it, its times and others' counts stay."""
    with scoreboard_memory(2) as memory:
        one, two = workers_of(memory, 2)
        one.counter("running", "k0").add(4)
        one.counter("running", "k3").add(7)
        one.counter("running", "k3").time[0] = 1.0
        two.counter("running", "k3").add(1)
        two.clear(0)
        again = Scoreboard(Seat(memory, 0, 2))
        again.counter("running", "k3").add(2)
        assert [two.counter("running", key).others for key in ("k0", "k3")] == [0, 2]
        assert again.counter("running", "k3").others == 1
        assert again.counter("running", "k3").time[0] == 1.0


def test_what_does_not_fit_is_each_worker_s_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full scoreboard takes no more keys, keeps those it has, and says so."""
    monkeypatch.setattr(scoreboard, "MAX_COUNTERS", 3)
    with scoreboard_memory(2) as memory:
        one, two = workers_of(memory, 2)
        for index in range(5):
            one.counter(f"k{index}").add(index + 1)
        assert [two.counter(f"k{index}").others for index in range(5)] == [1, 2, 3, 0, 0]
        assert [one.counter(f"k{index}").total for index in range(5)] == [1, 2, 3, 4, 5]
    assert "the scoreboard is full" in caplog.text


def test_a_single_process_shares_with_nobody() -> None:
    """Without a seat everything is there, and nobody else."""
    alone, other = Scoreboard(), Scoreboard()
    alone.counter("running", "k0").add(3)
    alone.counter("running", "k0").time[0] = 1.0
    assert (alone.counter("running", "k0").total, alone.counter("running", "k0").others) == (3, 0)
    assert (other.counter("running", "k0").total, other.counter("running", "k0").time[0]) == (0, 0)


def fill(memory: str, worker: int, num_lines: int) -> None:
    """Ask for lines when told to, as a worker's process does, and count on each, until killed."""
    board = Scoreboard(Seat(memory, worker, 3))
    board.counter("ready").add(1)
    while not board.counter("go").total:
        pass
    for index in random.Random(worker).sample(range(num_lines), num_lines):
        board.counter(f"k{index}").add(1)
    signal.pause()


def test_processes_that_add_lines_at_once_find_the_same_ones() -> None:
    """No line is there twice and none is lost, and one that was killed holds nobody up."""
    num_lines, spawn = 5_000, multiprocessing.get_context("spawn")
    with scoreboard_memory(3) as memory:
        processes = [spawn.Process(target=fill, args=(memory, i, num_lines)) for i in range(2)]
        for process in processes:
            process.start()
        try:
            board = Scoreboard(Seat(memory, 2, 3))
            wait_until(lambda: board.counter("ready").total == 2, 60)
            board.counter("go").add(1)
            lines = [board.counter(f"k{index}") for index in range(num_lines)]
            os.kill(processes[0].pid or 0, signal.SIGKILL)
            processes[0].join(60)
            board.counter("after", "death").add(1)
            board.clear(0)
            wait_until(lambda: [line.total for line in lines] == [1] * num_lines, 60)
        finally:
            for process in processes:
                process.kill()
                process.join(60)
