"""What a rollout did and where it stands, in SQLite: nothing is done that is not written first."""

import contextlib
import getpass
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.processes import is_alive

SCHEMA_VERSION = 1
LOCK_S = 30.0  # a lock that is not renewed is free after this long
BUSY_S = 10.0

_TABLES = """
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, phase TEXT NOT NULL,
    position INTEGER NOT NULL DEFAULT 0, going TEXT NOT NULL DEFAULT 'forward',
    reason TEXT NOT NULL DEFAULT '', facts TEXT NOT NULL DEFAULT '{}', started REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, rollout INTEGER NOT NULL, at REAL NOT NULL, who TEXT NOT NULL,
    action TEXT NOT NULL, stage TEXT NOT NULL, why TEXT NOT NULL, what TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY, rollout INTEGER NOT NULL, at REAL NOT NULL, who TEXT NOT NULL,
    verb TEXT NOT NULL, why TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS lock (
    only INTEGER PRIMARY KEY CHECK (only = 1), owner TEXT NOT NULL, host TEXT NOT NULL,
    pid INTEGER NOT NULL, expires REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS progress (rollout INTEGER PRIMARY KEY, what TEXT NOT NULL);
"""


class Phase(StrEnum):
    """Where a rollout stands; the words are those of Argo Rollouts."""

    PENDING = "Pending"
    RUNNING = "Running"
    PAUSED = "Paused"  # waits for promote or resume
    INCONCLUSIVE = "Inconclusive"  # a step had too few requests; waits likewise
    SUCCESSFUL = "Successful"
    FAILED = "Failed"  # an action could not be done; the old state is restored
    ABORTED = "Aborted"  # by a gate or a person; the old state is restored
    ERROR = "Error"  # something was out of reach; call again to go on, or abort

    @property
    def is_completed(self) -> bool:
        """True when nothing more will be done."""
        return self in (Phase.SUCCESSFUL, Phase.FAILED, Phase.ABORTED)


class Rollout(NamedTuple):
    """The record of one rollout."""

    id: int
    name: str
    digest: str  # of the spec it was started with
    phase: Phase
    position: int  # of the next action; of the last one to undo when going back
    going: str  # "forward" or "back"
    reason: str
    facts: dict[str, Any]  # what later actions need, the old state above all
    started: float


class Event(NamedTuple):
    """One line of the history: an action before ("do", "undo") or after ("done", "undone") it."""

    at: float
    who: str
    action: str
    stage: str
    why: str
    what: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """With the time as ISO 8601, UTC."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {**self._asdict(), "at": at}


class Order(NamedTuple):
    """What a person wants of the process at work."""

    id: int
    verb: str  # pause, promote, promote --full, abort
    why: str  # who, and the reason given


class LostLock(TrtMtpError):
    """Another process acts on this rollout."""


class Store:
    """The state file. Any process may read; who changes a rollout holds the lock."""

    def __init__(self, path: Path) -> None:
        """Open or make it; raises TrtMtpError when that fails, InputError when it is no state."""
        self.path = path
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._mutex = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise TrtMtpError(f"can't open {path}: {error}") from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # every commit survives a power cut
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
            elif version != SCHEMA_VERSION:
                raise InputError(f"{self.path} has schema_version {version}, not {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            if "file is not a database" in str(error):
                raise InputError(f"{self.path} is no rollout state: {error}") from None
            raise TrtMtpError(f"can't use {self.path}: {error}") from None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *ended: object) -> None:
        self._db.close()

    def latest(self, name: str) -> Rollout | None:
        """The last rollout of that name; None when there was none."""
        row = self._db.execute(
            "SELECT * FROM rollouts WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)
        ).fetchone()
        if row is None:
            return None
        values = dict(zip(Rollout._fields, row, strict=True))
        values |= {"phase": Phase(values["phase"]), "facts": json.loads(values["facts"])}
        return Rollout(**values)

    def begin(self, name: str, digest: str, facts: dict[str, Any]) -> Rollout:
        """Write down a rollout that is to be done."""
        with self._change():
            row = (name, digest, Phase.PENDING, json.dumps(facts), time.time())
            done = self._db.execute(
                "INSERT INTO rollouts (name, digest, phase, facts, started) VALUES (?, ?, ?, ?, ?)",
                row,
            )
            self._append(done.lastrowid or 0, "rollout", "begun", "", {"digest": digest})
        begun = self.latest(name)
        assert begun is not None
        return begun

    def record(
        self,
        rollout: Rollout,
        action: str,
        stage: str,
        why: str = "",
        what: Any = None,
        obeys: int = 0,
    ) -> None:
        """Write the rollout as it is now and a line of its history, and strike out an order."""
        with self._change():
            self._db.execute("DELETE FROM orders WHERE id = ?", (obeys,))
            self._db.execute(
                "UPDATE rollouts SET phase = ?, position = ?, going = ?, reason = ?, facts = ? "
                "WHERE id = ?",
                (*rollout[3:7], json.dumps(rollout.facts), rollout.id),
            )
            self._append(rollout.id, action, stage, why, what or {})

    def save_progress(self, rollout: Rollout, what: dict[str, Any]) -> None:
        """Say what the step at work has seen so far; no part of the history."""
        with self._change():
            row = (rollout.id, json.dumps(what))
            self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", row)

    def progress(self, rollout: Rollout) -> dict[str, Any]:
        """What was said last."""
        found = self._db.execute("SELECT what FROM progress WHERE rollout = ?", (rollout.id,))
        row = found.fetchone()
        return dict(json.loads(row[0])) if row else {}

    def check_lock(self) -> None:
        """Raise LostLock when another process took over."""
        with self._change():
            pass

    def history(self, rollout: Rollout) -> list[Event]:
        """All that was done, in order."""
        rows = self._db.execute(
            "SELECT at, who, action, stage, why, what FROM events WHERE rollout = ? ORDER BY id",
            (rollout.id,),
        )
        return [Event(*row)._replace(what=json.loads(row[-1])) for row in rows]

    def order(self, rollout: Rollout, verb: str, why: str) -> None:
        """Leave an order ("pause", "abort", …) for whoever holds the lock."""
        with self._transaction():
            row = (rollout.id, time.time(), who(), verb, why)
            self._db.execute(
                "INSERT INTO orders (rollout, at, who, verb, why) VALUES (?, ?, ?, ?, ?)", row
            )
            self._append(rollout.id, verb, "ordered", why, {})

    def next_order(self, rollout: Rollout) -> Order | None:
        """The oldest order that nobody obeyed."""
        row = self._db.execute(
            "SELECT id, verb, who, why FROM orders WHERE rollout = ? ORDER BY id LIMIT 1",
            (rollout.id,),
        ).fetchone()
        if row is None:
            return None
        return Order(row[0], row[1], f"by {row[2]}" + (f": {row[3]}" if row[3] else ""))

    def holder(self) -> str:
        """Who acts now, as `process 12 on host`; empty when nobody does."""
        row = self._db.execute("SELECT owner, host, pid, expires FROM lock").fetchone()
        return f"process {row[2]} on {row[1]}" if row and _is_held(*row) else ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who acts; raises LostLock when another process does already."""
        with self._transaction():
            row = self._db.execute("SELECT owner, host, pid, expires FROM lock").fetchone()
            if row and _is_held(*row):
                raise LostLock(f"process {row[2]} on {row[1]} is at work on {self.path}")
            lock = (self._owner, os.uname().nodename, os.getpid(), time.time() + LOCK_S)
            self._db.execute("INSERT OR REPLACE INTO lock VALUES (1, ?, ?, ?, ?)", lock)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with self._transaction():
                self._db.execute("DELETE FROM lock WHERE owner = ?", (self._owner,))

    def _renew(self, ended: threading.Event) -> None:
        """Loading a model may take longer than the lock holds."""
        while not ended.wait(LOCK_S / 5):
            # full disk or busy: the next try may be in time, else a change raises LostLock
            with contextlib.suppress(sqlite3.Error, TrtMtpError), self._transaction():
                renewed = (time.time() + LOCK_S, self._owner)
                self._db.execute("UPDATE lock SET expires = ? WHERE owner = ?", renewed)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction of whoever holds the lock."""
        with self._transaction():
            row = self._db.execute("SELECT owner FROM lock").fetchone()
            if row is None or row[0] != self._owner:
                raise LostLock(f"another process took over {self.path}; this one stops")
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All inside or nothing; raises TrtMtpError when it can't be written."""
        with self._mutex:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._commit()
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise TrtMtpError(f"can't write {self.path}: {error}") from None

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _append(self, rollout: int, action: str, stage: str, why: str, what: Any) -> None:
        self._db.execute(
            "INSERT INTO events (rollout, at, who, action, stage, why, what) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (rollout, time.time(), who(), action, stage, why, json.dumps(what)),
        )


def who() -> str:
    """user@host, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as containers have
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def _is_held(owner: str, host: str, pid: int, expires: float) -> bool:
    """False for a lock that expired, or whose process on this machine ended."""
    if host == os.uname().nodename and not is_alive(pid):
        return False
    return time.time() < expires
