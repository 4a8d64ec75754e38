"""What a policy has learned, kept across restarts and shared between gateways.

A gateway's own file that can't be used is set aside; a peer's is left alone.
"""

import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trt_mtp.controller.policy import Policy
from trt_mtp.errors import InputError
from trt_mtp.files import to_json, write_atomic

SCHEMA_VERSION = 1


def state_to_json(policy: Policy) -> dict[str, Any]:
    """The learned numbers of `policy`."""
    cost = policy.cost
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": policy.profile.fingerprint,
        "acceptance": policy.acceptance.to_json(),
        "cost": {
            "common": cost.common,
            "num_observed": cost.num_observed,
            "corrections": [[k, b, value] for (k, b), value in sorted(cost.corrections.items())],
        },
    }


def save_state(path: Path, policy: Policy) -> None:
    """Write the state atomically: a kill at any moment leaves the old file or the new one."""
    write_atomic(path, to_json(state_to_json(policy)))


def load_state(path: Path, policy: Policy) -> str:
    """Take over the state in `path`; the returned sentence says what was done.

    A file that is corrupt or belongs to another fingerprint is renamed, never overwritten, and
    the policy starts from its profile.
    """
    if not path.exists():
        return f"{path} does not exist yet: starting from the profile"
    try:
        read_state(path, policy)
    except InputError as error:
        return _set_aside(path, str(error))
    learned = policy.acceptance
    num_answers = learned.version + sum(version for version, _ in learned.peers.values())
    return f"{path}: {num_answers} answers learned before"


def read_state(path: Path, policy: Policy, *, is_peer: bool = False) -> None:
    """Take over the state in `path`, or raise InputError and leave file and policy as they are.

    Of a peer's state step times are left out: they are its machine's.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as a policy's state: {error}") from None
    try:
        problem = take_over(record, policy, is_peer)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"is no policy's state ({type(error).__name__}: {error})"
    if problem:
        raise InputError(f"{path} {problem}")


def default_replica(state: Path | None) -> str:
    """The name under which a gateway's counts are merged: no other's, kept as long as its file."""
    return f"{socket.gethostname()}:{state.absolute() if state else os.getpid()}"


class PeerStates:
    """Other gateways' state files, read again when they changed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stamps: dict[Path, tuple[int, ...]] = {}  # of what was read last

    def merge_into(self, policy: Policy) -> Iterator[str]:
        """Merge what changed since the last time; yields a sentence for each file that can't be."""
        for path in self._paths:
            stamp = _stamp(path)
            if self._stamps.get(path) == stamp:
                continue
            self._stamps[path] = stamp
            try:
                read_state(path, policy, is_peer=True)
            except InputError as error:
                yield f"a peer's state is left out: {error}"


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def take_over(record: Any, policy: Policy, is_peer: bool = False) -> str:
    """Why `record` can't be used by `policy`, or an empty string once it is in `policy`."""
    if record["schema_version"] != SCHEMA_VERSION:
        return f"has schema_version {record['schema_version']!r}, not {SCHEMA_VERSION}"
    if record["fingerprint"] != policy.profile.fingerprint:
        return f"belongs to {record['fingerprint']!r}, and this is {policy.profile.fingerprint!r}"
    cost = record["cost"]
    corrections = {(int(k), int(b)): float(value) for k, b, value in cost["corrections"]}
    if not all(math.isfinite(v) for v in _numbers(cost["common"], corrections.values())):
        return "holds a number that is not finite"
    num_observed = int(cost["num_observed"])
    policy.acceptance.merge(record["acceptance"])  # all or nothing
    if not is_peer:
        policy.cost.restore(float(cost["common"]), num_observed, corrections)
    return ""


def _numbers(first: Any, rest: Iterable[float]) -> list[float]:
    return [float(first), *rest]


def _set_aside(path: Path, problem: str) -> str:
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        return f"{problem}; can't be moved ({error}): starting from the profile"
    return f"{problem}; moved to {aside}, starting from the profile"
