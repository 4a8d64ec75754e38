"""What a policy has learned: kept in a file across restarts, and told to other gateways.

A file that can't be used is renamed, never overwritten.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trt_mtp.controller.policy import Policy
from trt_mtp.controller.position_counts import Counted, counted_to_json, read_counted
from trt_mtp.errors import InputError
from trt_mtp.files import PRIVATE, read_json, to_json, write_atomic

SCHEMA_VERSION = 1


NONE: frozenset[str] = frozenset()


def state_to_json(policy: Policy, hosted: frozenset[str] = NONE) -> dict[str, Any]:
    """The learned numbers of `policy`; `hosted` are the fingerprints of its variants."""
    cost = policy.cost
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": policy.profile.fingerprint,
        "learned_on": sorted(hosted),
        "acceptance": policy.acceptance.to_json(),
        "cost": {
            "num_observed": cost.num_observed,
            "posterior": cost.posterior.to_json(),
        },
    }


def save_state(path: Path, policy: Policy, hosted: frozenset[str] = NONE) -> None:
    """Write the state atomically: a kill at any moment leaves the old file or the new one."""
    write_atomic(path, to_json(state_to_json(policy, hosted)), PRIVATE)


def load_state(path: Path, policy: Policy, hosted: frozenset[str] = NONE) -> str:
    """Take over the state in `path`; returns a sentence for the log.

    If the file is corrupt or belongs to other variants, it is renamed, never overwritten, and the
    policy starts from its profile. `hosted` are the variants' fingerprints, as far as known.
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


def read_state(path: Path, policy: Policy, hosted: frozenset[str] = NONE) -> None:
    """Take over the state in `path`; raises InputError, which leaves both as they are."""
    record = read_json(path)
    try:
        take_over(record, policy, hosted)
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def default_replica(state: Path | None) -> str:
    """The unique name under which a gateway's counts are merged; it stays the same with `state`."""
    return f"{socket.gethostname()}:{state.absolute() if state else os.getpid()}"


def own_counts_to_json(policy: Policy, hosted: frozenset[str] = NONE) -> dict[str, Any]:
    """What this gateway alone has counted, for a store that gateways share.

    Without step times, which are those of this machine.
    """
    learned = policy.acceptance
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": policy.profile.fingerprint,
        "learned_on": sorted(hosted),
        "counted": counted_to_json((learned.version, learned.own)),
    }


def read_own_counts(record: Any, policy: Policy, hosted: frozenset[str] = NONE) -> Counted:
    """What another gateway wrote with `own_counts_to_json`; raises InputError."""
    with _said():
        _check_origin(record, policy.profile.fingerprint, hosted)
        return read_counted(record["counted"])


def take_over(record: Any, policy: Policy, hosted: frozenset[str] = NONE) -> None:
    """Put a state into `policy`; raises InputError, which leaves the policy as it is."""
    with _said():
        _check_origin(record, policy.profile.fingerprint, hosted)
        _restore(record, policy)


@contextmanager
def _said() -> Iterator[None]:
    """What a state lacks, or has in another form, becomes an InputError."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"is not a gateway's state: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise InputError("is not a gateway's state: what is in it has another form") from None


def _check_origin(record: Any, fingerprint: str, hosted: frozenset[str]) -> None:
    """Raise InputError for a state of another version, or that was learned on other variants."""
    if record["schema_version"] != SCHEMA_VERSION:
        version = f"{record['schema_version']!r:.20}"
        raise InputError(f"has schema_version {version}, not {SCHEMA_VERSION}")
    if record["fingerprint"] != fingerprint:
        raise InputError(
            f"was learned with {_profile(record['fingerprint'])}, and this is "
            f"{_profile(fingerprint)}"
        )
    learned_on = frozenset(record.get("learned_on", ()))  # older files don't say
    if learned_on and hosted and not learned_on & hosted:
        raise InputError(
            f"was learned on variants {', '.join(sorted(learned_on))}, and hosted are "
            f"{', '.join(sorted(hosted))}"
        )


def _profile(fingerprint: Any) -> str:
    return f"a profile of {fingerprint!r:.40}" if fingerprint else "no profile"


def _restore(record: Any, policy: Policy) -> None:
    cost = record["cost"]
    num_observed, known = int(cost["num_observed"]), cost.get("posterior")  # older files lack it
    posterior = None if known is None else policy.cost.posterior.restored(known)
    policy.acceptance.merge(record["acceptance"])  # all or nothing
    if posterior is not None:
        policy.cost.restore(posterior, num_observed)


def _set_aside(path: Path, problem: str) -> str:
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        return f"{problem}; can't be moved ({error}): starting from the profile"
    return f"{problem}; moved to {aside}, starting from the profile"
