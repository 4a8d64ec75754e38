"""The traffic file: which variants are stable and which are the canary, and who goes where.

A rollout writes it, gateways look at it twice a second and confirm what they read in a small
file beside it. A gateway goes on with what it read last when the file is broken or gone.
"""

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import SMALL, FileWatch, read_json, to_json, write_atomic

log = logging.getLogger(__name__)

LIVE_S = 5.0  # a gateway that has not confirmed for this long is gone
STABLE, CANARY = "stable", "canary"
Percent = Annotated[float, Field(ge=0, le=100)]


class Side(BaseModel):
    """What serves the requests of one side; no profile means the one the gateway started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: tuple[str, ...]  # names as the gateway has them, k3 for example
    profile: str | None = None


class Traffic(BaseModel):
    """Which conversations go to which variants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    revision: Annotated[int, Field(ge=0)] = 0  # grows with every change
    rollout: str = ""  # part of the hash, so that each rollout meets other conversations first
    stable: Side
    canary: Side | None = None
    canary_percent: Percent = 0.0
    shadow_percent: Percent = 0.0

    def side(self, conversation: str | None) -> str:
        """Where a conversation goes, always the same; a request without one is on its own.

        Who is the canary's at a percentage is so at every higher one.
        """
        if self.canary is None or self.canary_percent <= 0:
            return STABLE
        at = DRAWS.random() if conversation is None else _point(self.rollout, conversation)
        return CANARY if at < self.canary_percent / 100 else STABLE


def _point(salt: str, key: str) -> float:
    """A number in [0, 1) that follows from its arguments."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_traffic(path: Path) -> Traffic:
    """The traffic in `path`; raises InputError that names what is wrong."""
    try:
        return Traffic.model_validate(read_json(path, SMALL))
    except ValidationError as error:
        known = Traffic.model_fields | Side.model_fields
        raise InputError(f"{path}: {first_problem(error, known)}") from None


def write_traffic(path: Path, traffic: Traffic) -> Traffic:
    """Write `traffic` under the next revision, unless the file says the same already.

    Returns it as the file has it. Raises TrtMtpError when the disk is full.
    """
    try:
        before = read_traffic(path)
    except InputError:
        before = None
    revision = before.revision if before else 0
    if before is not None and before == traffic.model_copy(update={"revision": revision}):
        return before
    # by the clock, so that a file which was lost does not begin again below what was confirmed
    changed = traffic.model_copy(update={"revision": max(revision + 1, time.time_ns() // 10**6)})
    write_atomic(path, to_json(changed.model_dump(mode="json")))
    return changed


class TrafficFile:
    """A gateway's view of the traffic file; `poll` about twice a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.traffic: Traffic | None = None  # None until a good one was read
        self._watch = FileWatch(path)
        self._problem = ""
        self._confirmed = -1
        self._confirmation = path.with_name(f"{path.name}.seen-{os.uname().nodename}-{os.getpid()}")

    @property
    def names(self) -> tuple[str, ...]:
        """All variants that the file names."""
        if self.traffic is None:
            return ()
        sides = (self.traffic.stable, self.traffic.canary)
        return tuple({name: None for side in sides if side for name in side.variants})

    def poll(self) -> bool:
        """Take over what the file says now; true when that is something else than before."""
        if not self._watch.has_changed() or not self.path.exists():  # no rollout yet
            return False
        try:
            self.traffic = read_traffic(self.path)
        except InputError as error:
            self._watch.look_again()
            self._complain(f"traffic stays as it was: {error}")
            return False
        self._problem = ""
        log.info("traffic: revision %d of %s", self.traffic.revision, self.path)
        return True

    def confirm(self) -> None:
        """Tell rollouts that what was read is obeyed, and that this gateway is alive."""
        try:
            if self.traffic is not None and self.traffic.revision != self._confirmed:
                write_atomic(self._confirmation, json.dumps({"revision": self.traffic.revision}))
                self._confirmed = self.traffic.revision
            elif self.traffic is not None:
                os.utime(self._confirmation)
        except (OSError, TrtMtpError) as error:
            self._confirmed = -1
            self._complain(f"the traffic file can't be confirmed: {error}")

    def _complain(self, problem: str) -> None:
        if problem != self._problem:  # once
            self._problem = problem
            log.error("%s", problem)

    def close(self) -> None:
        """Say that this gateway no longer follows."""
        self._confirmation.unlink(missing_ok=True)


def shadow_log(path: Path) -> Path:
    """Where the gateways of a traffic file write what became of copied requests."""
    return path.with_name(f"{path.name}.shadow.jsonl")


def confirmed_revisions(path: Path) -> list[int]:
    """The revisions that the gateways alive now have read, one each."""
    revisions = []
    for file in path.parent.glob(f"{path.name}.seen-*"):
        try:
            if time.time() - file.stat().st_mtime < LIVE_S:
                revisions.append(int(read_json(file, SMALL)["revision"]))
        except (OSError, InputError, ValueError, LookupError, TypeError):
            continue
    return revisions
