"""What an app's requests have in common beyond their tasks: one offset of acceptance, in logits.

An app is whoever sends the same system prompt. Counts for each of its tasks would be thin, so all
of them teach one number: by how much first drafts were accepted more often than its tasks explain.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from trt_mtp.controller.log_odds import logit
from trt_mtp.controller.position_counts import PositionCounts

MAX_APPS = 1024
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
    return f"app/{tenant}/{app}" if tenant else f"app/{app}"


class Apps:
    """Which apps are counted, those last that asked last."""

    def __init__(self) -> None:
        self._scopes: OrderedDict[str, None] = OrderedDict()

    @classmethod
    def of(cls, counts: Iterable[str]) -> "Apps":
        """The apps among the scopes of `counts`."""
        apps = cls()
        apps._scopes.update({scope: None for scope in counts if scope.startswith("app/")})
        return apps

    def counted(
        self, counts: dict[str, PositionCounts], scope: str
    ) -> tuple[PositionCounts, PositionCounts]:
        """What is seen of an app and what is expected, both among `counts`, for count_beside.

        Beyond MAX_APPS the one that asked nothing for the longest is forgotten.
        """
        self._scopes[scope] = None
        self._scopes.move_to_end(scope)
        if len(self._scopes) > MAX_APPS:
            gone, _ = self._scopes.popitem(last=False)
            counts.pop(gone, None)
            counts.pop(f"expected/{gone}", None)
        seen = counts.setdefault(scope, PositionCounts())
        return seen, counts.setdefault(f"expected/{scope}", PositionCounts())
