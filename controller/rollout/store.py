"""The state of rollouts in SQLite: each action is recorded before it is done."""

import contextlib
import getpass
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.controller.rollout.lock import (
    BEAT_S,
    SILENT_S,
    BeatWatch,
    Holder,
    this_process,
)
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import open_private

SCHEMA_VERSION = 2
LOOK_S = 0.5  # between two looks at a holder elsewhere
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
    pid INTEGER NOT NULL, machine TEXT NOT NULL, started INTEGER NOT NULL, beat INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS progress (rollout INTEGER PRIMARY KEY, what TEXT NOT NULL);
"""


class Phase(StrEnum):
    """The phase of a rollout, in the words of Argo Rollouts."""

    PENDING = "Pending"
    RUNNING = "Running"
    PAUSED = "Paused"  # waits for promote or resume
    INCONCLUSIVE = "Inconclusive"  # a step had too few requests; waits for promote or resume
    SUCCESSFUL = "Successful"
    FAILED = "Failed"  # an action could not be done; the old state is restored
    ABORTED = "Aborted"  # by a gate or a person; the old state is restored
    ERROR = "Error"  # a server or file could not be used; call again to continue, or abort

    @property
    def is_completed(self) -> bool:
        """True if nothing more will be done."""
        return self in (Phase.SUCCESSFUL, Phase.FAILED, Phase.ABORTED)


class Rollout(NamedTuple):
    """The record of one rollout."""

    id: int
    name: str
    digest: str  # of its spec at the start
    phase: Phase
    position: int  # of the next action; of the last one to undo when going back
    direction: str  # "forward" or "back"
    reason: str
    facts: dict[str, Any]  # what later actions need, above all the old state
    started_at: float  # Unix time


class Event(NamedTuple):
    """A line of the history: an action before ("do", "undo") or after ("done", "undone") it ran."""

    at: float  # Unix time
    who: str
    action: str
    stage: str
    why: str
    what: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The event with its time in ISO 8601, UTC."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {**self._asdict(), "at": at}


class Order(NamedTuple):
    """What a person orders the running process to do."""

    id: int
    verb: str  # pause, promote, promote --full, abort
    why: str  # who, and the reason given


class LockLostError(TrtMtpError):
    """Another process acts on this rollout."""


class Store:
    """The state file. Any process may read it; a process that changes a rollout holds the lock."""

    def __init__(self, path: Path) -> None:
        """Open or create it; raises TrtMtpError if that fails, InputError for another file."""
        self.path = path
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._mutex = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_private(str(path), os.O_RDWR | os.O_CREAT))
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
            if version in (0, 1):  # a lock of version 1 ended by the clock
                self._db.execute("DROP TABLE IF EXISTS lock")
                self._db.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
            elif version != SCHEMA_VERSION:
                raise InputError(f"{self.path} has schema_version {version}, not {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            if "file is not a database" in str(error):
                raise InputError(f"{self.path} is not a rollout state: {error}") from None
            raise TrtMtpError(f"can't use {self.path}: {error}") from None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *ended: object) -> None:
        self._db.close()

    def latest(self, name: str) -> Rollout | None:
        """The last rollout of that name; None if there was none."""
        with self._reading():
            row = self._db.execute(
                "SELECT * FROM rollouts WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)
            ).fetchone()
            if row is None:
                return None
            values = dict(zip(Rollout._fields, row, strict=True))
            values |= {"phase": Phase(values["phase"]), "facts": dict(json.loads(values["facts"]))}
            return Rollout(**values)

    def begin(self, name: str, digest: str, facts: dict[str, Any]) -> Rollout:
        """Record a new rollout."""
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
        order_id: int = 0,
    ) -> None:
        """Write the rollout, a line of its history, and delete the order that it executed."""
        with self._change():
            self._db.execute("DELETE FROM orders WHERE id = ?", (order_id,))
            self._db.execute(
                "UPDATE rollouts SET phase = ?, position = ?, going = ?, reason = ?, facts = ? "
                "WHERE id = ?",
                (*rollout[3:7], json.dumps(rollout.facts), rollout.id),
            )
            self._append(rollout.id, action, stage, why, what or {})

    def save_progress(self, rollout: Rollout, what: dict[str, Any]) -> None:
        """Write what the running step has seen so far; not part of the history."""
        with self._change():
            row = (rollout.id, json.dumps(what))
            self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", row)

    def progress(self, rollout: Rollout) -> dict[str, Any]:
        """The last progress that was saved."""
        with self._reading():
            row = self._db.execute(
                "SELECT what FROM progress WHERE rollout = ?", (rollout.id,)
            ).fetchone()
            return dict(json.loads(row[0])) if row else {}

    def check_lock(self) -> None:
        """Raise LockLostError if another process took over."""
        with self._change():
            pass

    def history(self, rollout: Rollout) -> list[Event]:
        """The rollout's events, oldest first."""
        with self._reading():
            rows = self._db.execute(
                "SELECT at, who, action, stage, why, what FROM events WHERE rollout = ? "
                "ORDER BY id",
                (rollout.id,),
            )
            return [Event(*row)._replace(what=json.loads(row[-1])) for row in rows]

    def order(self, rollout: Rollout, verb: str, why: str) -> None:
        """Leave an order ("pause", "abort", …) for the process that holds the lock."""
        with self._transaction():
            row = (rollout.id, time.time(), who(), verb, why)
            self._db.execute(
                "INSERT INTO orders (rollout, at, who, verb, why) VALUES (?, ?, ?, ?, ?)", row
            )
            self._append(rollout.id, verb, "ordered", why, {})

    def next_order(self, rollout: Rollout) -> Order | None:
        """The oldest order that was not executed."""
        row = self._db.execute(
            "SELECT id, verb, who, why FROM orders WHERE rollout = ? ORDER BY id LIMIT 1",
            (rollout.id,),
        ).fetchone()
        if row is None:
            return None
        return Order(row[0], row[1], f"by {row[2]}" + (f": {row[3]}" if row[3] else ""))

    def holder(self) -> str:
        """The process that holds the lock, such as `process 12 on host`; empty if none does."""
        holder = self._holder()
        return str(holder) if holder and _may_live(holder) else ""

    def _holder(self) -> Holder | None:
        with self._reading():
            row = self._db.execute(f"SELECT {', '.join(Holder._fields)} FROM lock").fetchone()
            return Holder(*row) if row else None

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Hold the lock; raises LockLostError if another process holds it.

        A process on this machine holds it until it ends. Of one elsewhere a sign of life is waited
        for, SILENT_S at most; `say` is told so.
        """
        is_told = False
        while not self._take_lock():
            if not is_told:
                say(
                    f"{self.holder()} has the lock of {self.path}: waiting {SILENT_S:.0f} s at "
                    f"most for a sign that it lives"
                )
            is_told = True
            time.sleep(LOOK_S)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()  # a transaction waits BUSY_S at most
            with self._transaction():
                self._db.execute("DELETE FROM lock WHERE owner = ?", (self._owner,))

    def _take_lock(self) -> bool:
        """Take it; False if another look has to show whether its holder elsewhere lives."""
        with self._transaction():
            other = self._holder()
            if other and _may_live(other):
                if other.is_here or _BEATS.has_moved(other):
                    raise LockLostError(f"{other} is at work on {self.path}")
                return False
            mine = this_process(self._owner)
            self._db.execute("INSERT OR REPLACE INTO lock VALUES (1, ?, ?, ?, ?, ?, ?)", mine)
            return True

    def unlock(self, rollout: Rollout) -> str:
        """Take the lock from a process that is gone, or out of sight; returns which, or nothing.

        A process elsewhere that lives all the same stops at its next change. Raises InputError
        for one that lives on this machine.
        """
        with self._transaction():
            other = self._holder()
            if other is None:
                return ""
            if other.is_here and other.is_alive:
                raise InputError(f"{other} lives and holds the lock of {self.path}; end it first")
            self._db.execute("DELETE FROM lock")
            self._append(rollout.id, "lock", "broken", "", {"holder": str(other)})
            return str(other)

    def _renew(self, ended: threading.Event) -> None:
        """Show that this process lives, to those that can't see it."""
        while not ended.wait(BEAT_S):
            # full disk or busy: the next try may be in time, else a change raises LockLostError
            with contextlib.suppress(sqlite3.Error, TrtMtpError), self._transaction():
                self._db.execute("UPDATE lock SET beat = beat + 1 WHERE owner = ?", (self._owner,))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise InputError for a record that no rollout writes, TrtMtpError where it can't be read.

        The file may have been edited, or be damaged.
        """
        try:
            yield
        except sqlite3.Error as error:
            raise TrtMtpError(f"can't read {self.path}: {error}") from None
        except (ValueError, TypeError, RecursionError):
            raise InputError(
                f"{self.path} has a record that no rollout writes: put back a copy, or remove it "
                f"and see to the servers and the traffic files yourself"
            ) from None

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction that needs the lock."""
        with self._transaction():
            row = self._db.execute("SELECT owner FROM lock").fetchone()
            if row is None or row[0] != self._owner:
                raise LockLostError(f"another process took over {self.path}; this one stops")
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit everything inside, or nothing; raises TrtMtpError if the file can't be written."""
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
    """user@host, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an id without a name, such as in containers
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


_BEATS = BeatWatch()


def _may_live(holder: Holder) -> bool:
    """False for a process that ended on this machine, or gave no sign of life from elsewhere."""
    return holder.is_alive if holder.is_here else not _BEATS.is_silent(holder)
