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


NONE: frozenset[str] = frozenset()


def state_to_json(policy: Policy, hosted: frozenset[str] = NONE) -> dict[str, Any]:
    """The learned numbers of `policy`, learned on variants of the fingerprints `hosted`."""
    cost = policy.cost
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": policy.profile.fingerprint,
        "learned_on": sorted(hosted),
        "acceptance": policy.acceptance.to_json(),
        "cost": {
            "common": cost.common,
            "num_observed": cost.num_observed,
            "corrections": [[k, b, value] for (k, b), value in sorted(cost.corrections.items())],
        },
    }


def save_state(path: Path, policy: Policy, hosted: frozenset[str] = NONE) -> None:
    """Write the state atomically: a kill at any moment leaves the old file or the new one."""
    write_atomic(path, to_json(state_to_json(policy, hosted)))


def load_state(path: Path, policy: Policy, hosted: frozenset[str] = NONE) -> str:
    """Take over the state in `path`; the returned sentence says what was done.

    A file that is corrupt or belongs to other variants is renamed, never overwritten, and the
    policy starts from its profile. `hosted` are the variants' fingerprints, where they are known.
    """
    if not path.exists():
        return f"{path} does not exist yet: starting from the profile"
    try:
        read_state(path, policy, hosted)
    except InputError as error:
        return _set_aside(path, str(error))
    learned = policy.acceptance
    num_answers = learned.version + sum(version for version, _ in learned.peers.values())
    return f"{path}: {num_answers} answers learned before"


def read_state(
    path: Path, policy: Policy, hosted: frozenset[str] = NONE, *, is_peer: bool = False
) -> None:
    """Take over the state in `path`, or raise InputError and leave file and policy as they are.

    Of a peer's state step times are left out: they are its machine's.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no gateway's state: it is not JSON") from None
    problem = take_over(record, policy, hosted, is_peer=is_peer)
    if problem:
        raise InputError(f"{path} {problem}")


def default_replica(state: Path | None) -> str:
    """The name under which a gateway's counts are merged: no other's, kept as long as its file."""
    return f"{socket.gethostname()}:{state.absolute() if state else os.getpid()}"


class PeerStates:
    """Other gateways' state files, read again when they changed."""

    def __init__(self, paths: Sequence[Path], later: Sequence[Path] = ()) -> None:
        """Those in `later` need not be there yet."""
        self._paths = (*paths, *later)
        self._later = frozenset(later)
        self._stamps: dict[Path, tuple[int, ...]] = {}  # of what was read last

    def merge_into(self, policy: Policy, hosted: frozenset[str] = NONE) -> Iterator[str]:
        """Merge what changed since the last time; yields a sentence for each file that can't be."""
        for path in self._paths:
            stamp = _stamp(path)
            if self._stamps.get(path) == stamp or (not stamp and path in self._later):
                continue
            self._stamps[path] = stamp
            try:
                read_state(path, policy, hosted, is_peer=True)
            except InputError as error:
                yield f"a peer's state is left out: {error}"


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def take_over(
    record: Any, policy: Policy, hosted: frozenset[str] = NONE, *, is_peer: bool = False
) -> str:
    """Why `record` can't be used by `policy`, or an empty string once it is in `policy`."""
    try:
        return _is_foreign(record, policy.profile.fingerprint, hosted) or _take(
            record, policy, is_peer
        )
    except KeyError as error:
        return f"is no gateway's state: {error} is missing"
    except (TypeError, ValueError, AttributeError, OverflowError):
        return "is no gateway's state: what is in it has another form"


def _is_foreign(record: Any, fingerprint: str, hosted: frozenset[str]) -> str:
    """Why the state is another version's or other variants'; an empty string where it isn't."""
    if record["schema_version"] != SCHEMA_VERSION:
        return f"has schema_version {record['schema_version']!r:.20}, not {SCHEMA_VERSION}"
    if record["fingerprint"] != fingerprint:
        return (
            f"was learned with {_profile(record['fingerprint'])}, and this is "
            f"{_profile(fingerprint)}"
        )
    learned_on = frozenset(record.get("learned_on", ()))  # older files don't say
    if learned_on and hosted and not learned_on & hosted:
        return (
            f"was learned on variants {', '.join(sorted(learned_on))}, and hosted are "
            f"{', '.join(sorted(hosted))}"
        )
    return ""


def _profile(fingerprint: Any) -> str:
    return f"a profile of {fingerprint!r:.40}" if fingerprint else "no profile"


def _take(record: Any, policy: Policy, is_peer: bool) -> str:
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
