"""The state of rollouts: written before it is true, held by one process at a time."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from trt_mtp.controller.rollout.store import LostLock, Phase, Store
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


def test_only_one_acts(tmp_path: Path) -> None:
    """A second process is told who is at work, and can't write."""
    with Store(tmp_path / "r.db") as one, Store(tmp_path / "r.db") as two:
        with one.locked():
            one.begin("k5", "d1", {})
            with pytest.raises(LostLock, match=f"process {os.getpid()} "), two.locked():
                pass
            with pytest.raises(LostLock):
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
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "r.db"])
    assert killed.returncode == -9
    with Store(tmp_path / "r.db") as store, store.locked():
        assert store.latest("k5") is not None


def test_who_lost_the_lock_writes_no_more(tmp_path: Path) -> None:
    """A process that slept too long finds that another one took over."""
    path = tmp_path / "r.db"
    with Store(path) as one, Store(path) as two, one.locked():
        begun = one.begin("k5", "d1", {})
        with contextlib.closing(sqlite3.connect(path)) as clock, clock:
            clock.execute("UPDATE lock SET expires = 0")  # as after a long sleep
        with two.locked(), pytest.raises(LostLock, match="took over"):
            one.record(begun, "load 0", "do")


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
        store.record(begun, "pause", "done", obeys=order.id)
        following = store.next_order(begun)
        assert following is not None
        assert following.verb == "abort"


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is no state, or one of a later version, is not touched."""
    (tmp_path / "text").write_text("not a database, but long enough to look at" * 40)
    with pytest.raises(InputError, match="is no rollout state"):
        Store(tmp_path / "text")
    database = sqlite3.connect(tmp_path / "later.db")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(InputError, match="schema_version 9, not 1"):
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
