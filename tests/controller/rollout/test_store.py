"""The state of rollouts: written before it is true, held by one process at a time."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import TIMEOUT_S
from trt_mtp.controller.rollout import lock
from trt_mtp.controller.rollout import store as store_module
from trt_mtp.controller.rollout.control import alone_with_traffic
from trt_mtp.controller.rollout.spec import GatewayFiles, How, RolloutSpec, Step, What, Where
from trt_mtp.controller.rollout.store import LockLostError, Phase, Store
from trt_mtp.errors import InputError, TrtMtpError


def test_a_record_comes_back(tmp_path: Path) -> None:
    """What was written is there for the next process, with its history in order."""
    with Store(tmp_path / "r.db") as store, store.locked():
        begun = store.begin("k5", "d1", {"old": "k3"})
        running = begun._replace(phase=Phase.RUNNING, position=2)
        store.record(running, "load 0", "do", why="", what={"server": "s"})
    with Store(tmp_path / "r.db") as store:
        found = store.latest("k5")
        assert found == running
        assert [(e.action, e.stage) for e in store.history(found)] == [
            ("rollout", "begun"),
            ("load 0", "do"),
        ]
        assert store.history(found)[1].what == {"server": "s"}
        assert store.latest("k6") is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("UPDATE rollouts SET phase = 'Odd'", InputError),
        ("UPDATE rollouts SET facts = '{'", InputError),
        ("UPDATE rollouts SET facts = '[1]'", InputError),
        ("UPDATE events SET what = '{'", InputError),
        ("UPDATE rollouts SET facts = x'ff'", InputError),
        ("DROP TABLE events", TrtMtpError),
    ],
)
def test_a_record_that_was_edited_is_said_to_be_so(
    tmp_path: Path, change: str, error: type[Exception]
) -> None:
    """Nothing is done by it."""
    with Store(tmp_path / "r.db") as store, store.locked():
        store.begin("k5", "d1", {"old": "k3"})
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as edited:
        edited.execute(change)

    def read() -> None:
        with Store(tmp_path / "r.db") as store:
            found = store.latest("k5")
            assert found is not None
            store.history(found)

    with pytest.raises(error, match=r"r\.db"):
        read()


def test_only_one_acts(tmp_path: Path) -> None:
    """A second process is told who is at work, and can't write."""
    with Store(tmp_path / "r.db") as one, Store(tmp_path / "r.db") as two:
        with one.locked():
            one.begin("k5", "d1", {})
            with pytest.raises(LockLostError, match=f"process {os.getpid()} "), two.locked():
                pass
            with pytest.raises(LockLostError):
                two.begin("k6", "d1", {})
            assert two.holder().startswith(f"process {os.getpid()}")
        assert two.holder() == ""
        with two.locked():
            two.begin("k6", "d1", {})


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    """A kill leaves nothing that has to be waited for on the same machine."""
    script = (
        "import os, sys, pathlib\nfrom trt_mtp.controller.rollout.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\nlock = store.locked()\nlock.__enter__()\n"
        "store.begin('k5', 'd1', {})\nos.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "r.db"], timeout=TIMEOUT_S)
    assert killed.returncode == -9
    with Store(tmp_path / "r.db") as store, store.locked():
        assert store.latest("k5") is not None


def test_no_clock_takes_the_lock_of_a_living_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the clock stands, before and after, the holder is asked for, not its time."""
    with Store(tmp_path / "r.db") as one, Store(tmp_path / "r.db") as two, one.locked():
        for clock in (0.0, 1e10):
            monkeypatch.setattr(time, "time", lambda clock=clock: clock)
            with pytest.raises(LockLostError, match=f"process {os.getpid()} "), two.locked():
                pass
            one.begin("k5", "d1", {})


def move_holder(path: Path, **changes: object) -> None:
    """Let the lock be that of another process."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for name, value in changes.items():
            database.execute(f"UPDATE lock SET {name} = ?", (value,))


def test_a_later_process_of_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    """The kernel gives ids again."""
    with Store(tmp_path / "r.db") as one, Store(tmp_path / "r.db") as two, one.locked():
        move_holder(tmp_path / "r.db", started=1)
        assert two.holder() == ""
        with two.locked():
            two.begin("k5", "d1", {})


def test_a_holder_elsewhere_that_gives_no_sign_loses_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silence is waited for, and said; then it is over, and it writes no more."""
    monkeypatch.setattr(lock, "SILENT_S", 1.0)
    path, said = tmp_path / "r.db", list[str]()
    with Store(path) as one, Store(path) as two, one.locked():
        begun = one.begin("k5", "d1", {})
        move_holder(path, machine="another", host="away")
        assert "on away" in two.holder()
        with two.locked(said.append), pytest.raises(LockLostError, match="took over"):
            one.record(begun, "load 0", "do")
    assert len(said) == 1
    assert "on away has the lock" in said[0]


def test_a_holder_elsewhere_that_lives_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sign of life within the time is enough."""
    monkeypatch.setattr(store_module, "BEAT_S", 0.1)
    path = tmp_path / "r.db"
    with Store(path) as one, Store(path) as two, one.locked():
        move_holder(path, machine="another")
        with pytest.raises(LockLostError, match="is at work"), two.locked():
            pass


def test_a_lock_can_be_broken_unless_its_process_lives_here(tmp_path: Path) -> None:
    """That of a machine that is gone, at once; the history says so."""
    path = tmp_path / "r.db"
    with Store(path) as one, Store(path) as two, one.locked():
        begun = one.begin("k5", "d1", {})
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* lives"):
            two.unlock(begun)
        move_holder(path, machine="another", host="away")
        assert two.unlock(begun).endswith(" on away")
        assert two.unlock(begun) == ""
        assert two.history(begun)[-1].stage == "broken"
        with pytest.raises(LockLostError):
            one.record(begun, "load 0", "do")


def test_the_state_is_its_users_alone(tmp_path: Path) -> None:
    """It has the history of who did what."""
    with Store(tmp_path / "r.db") as store, store.locked():
        store.begin("k5", "d1", {})
        modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {0o600}


def test_a_state_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """With its rollouts, without its lock, which ended by the clock."""
    path = tmp_path / "r.db"
    with Store(path) as store, store.locked():
        begun = store.begin("k5", "d1", {})
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE lock")
        database.execute(
            "CREATE TABLE lock (only INTEGER PRIMARY KEY, owner TEXT, host TEXT, pid INTEGER, "
            "expires REAL)"
        )
        database.execute("INSERT INTO lock VALUES (1, 'a', 'b', 1, 1e12)")
        database.execute("PRAGMA user_version = 1")
    with Store(path) as store, store.locked():
        assert store.latest("k5") == begun


def test_orders_wait_until_they_are_obeyed(tmp_path: Path) -> None:
    """An order is struck out together with the record of what it led to."""
    with Store(tmp_path / "r.db") as store, store.locked():
        begun = store.begin("k5", "d1", {})
        store.order(begun, "pause", "lunch")
        store.order(begun, "abort", "")
        order = store.next_order(begun)
        assert order is not None
        assert (order.verb, order.why.endswith(": lunch")) == ("pause", True)
        assert store.next_order(begun) == order
        store.record(begun, "pause", "done", order_id=order.id)
        following = store.next_order(begun)
        assert following is not None
        assert following.verb == "abort"


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is no state, or one of a later version, is not touched."""
    (tmp_path / "text").write_text("not a database, but long enough to look at" * 40)
    with pytest.raises(InputError, match="is not a rollout state"):
        Store(tmp_path / "text")
    database = sqlite3.connect(tmp_path / "later.db")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(InputError, match="schema_version 9, not 2"):
        Store(tmp_path / "later.db")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """What can't be written raises TrtMtpError, and the state stays as it was."""
    with Store(tmp_path / "r.db") as store, store.locked():
        begun = store.begin("k5", "d1", {})
        store._db.execute("PRAGMA max_page_count = 1")  # SQLite's own way to be full
        with pytest.raises(TrtMtpError, match="full"):
            store.record(begun, "load 0", "do", what={"text": "x" * 10**6})
        found = store.latest("k5")
        assert found == begun


def test_two_states_of_the_same_traffic_take_turns(tmp_path: Path) -> None:
    """Each rollout would write over what the other believes of the traffic."""

    def of(state: str, traffic: str) -> RolloutSpec:
        gateway = GatewayFiles(traffic=tmp_path / traffic, decision_log=tmp_path / "log")
        where = Where(state=tmp_path / state, gateways=(gateway,))
        what = What(profile=tmp_path / "p.json")
        steps = (Step(set_weight=100),)
        return RolloutSpec(
            schema_version=1, name="k5", what=what, where=where, how=How(steps=steps)
        )

    with alone_with_traffic(of("a.db", "traffic.json")):
        with alone_with_traffic(of("b.db", "other.json")):
            pass
        with (
            pytest.raises(InputError, match=r"another rollout is at work on .*traffic\.json"),
            alone_with_traffic(of("b.db", "traffic.json")),
        ):
            pass
    with alone_with_traffic(of("b.db", "traffic.json")):
        pass
