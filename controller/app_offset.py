"""What an app's requests have in common beyond their tasks: one offset of acceptance, in logits.

An app is whoever sends the same system prompt. Counts for each of its tasks would be thin, so all
of them teach one number: by how much first drafts were accepted more often than its tasks explain.
"""

import hashlib
from collections.abc import Iterable

from trt_mtp.controller.fair_table import FairTable
from trt_mtp.controller.log_odds import logit
from trt_mtp.controller.position_counts import PositionCounts

MAX_APPS = 1024
MAX_NAME_BYTES = 48  # of a tenant's
_DIGITS = b"0123456789"


def app_key(system: str) -> str | None:
    """The name of the app that sends this system prompt; None without one.

    Digits don't count: today's date in a prompt makes it no other app's.
    """
    if not system:
        return None
    text = system.encode("utf-8", "replace").translate(None, _DIGITS)
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def offset(seen: PositionCounts, expected: PositionCounts, weight: float) -> float:
    """By how much first drafts were accepted more often than expected, in logits.

    `weight` is how many trials as expected are added to those that were seen.
    """
    num_tried = seen.trials[0]
    if num_tried <= 0:
        return 0.0
    before = expected.successes[0] / num_tried
    after = (seen.successes[0] + weight * before) / (num_tried + weight)
    return logit(after) - logit(before)


def count_beside(
    seen: PositionCounts,
    expected: PositionCounts,
    chance: float,
    num_tried: float,
    num_accepted: float,
    weight: float,
) -> None:
    """Add an answer's first drafts to `seen`, and to `expected` those of which `chance` hold."""
    seen.count((num_tried,), (num_accepted,), weight)
    expected.count((num_tried,), (chance * num_tried,), weight)


def app_scope(tenant: str | None, app: str) -> str:
    """The name of an app's counts: what one tenant's requests do says nothing of another's."""
    return f"app/{short(tenant)}/{app}" if tenant else f"app/{app}"


def short(tenant: str) -> str:
    """A tenant's name in the names of counts, which anybody may have made long: or its hash."""
    name = tenant.encode("utf-8", "replace")
    if len(name) <= MAX_NAME_BYTES:
        return tenant
    return hashlib.blake2b(name, digest_size=16).hexdigest()


class Apps:
    """Which apps are counted: of each tenant no more than its share where there are too many."""

    def __init__(self) -> None:
        self._scopes = FairTable(MAX_APPS)

    @classmethod
    def of(cls, counts: Iterable[str]) -> "Apps":
        """The apps among the scopes of `counts`."""
        apps = cls()
        for scope in counts:
            if scope.startswith("app/"):
                tenant = scope.removeprefix("app/").rpartition("/")[0]
                apps._scopes.use(tenant, scope)
        return apps

    def counted(
        self, counts: dict[str, PositionCounts], tenant: str | None, scope: str
    ) -> tuple[PositionCounts, PositionCounts]:
        """What is seen of an app and what is expected, both among `counts`, for count_beside.

        Beyond MAX_APPS, of the tenant with the most, the one that asked nothing for the longest is
        forgotten.
        """
        gone = self._scopes.use(tenant, scope)
        if gone is not None:
            counts.pop(gone, None)
            counts.pop(f"expected/{gone}", None)
        seen = counts.setdefault(scope, PositionCounts())
        return seen, counts.setdefault(f"expected/{scope}", PositionCounts())
