"""Whether the shared store can be reached: told by what uses it, logged when it changes."""

import logging
import random
import time

from trt_mtp.controller.gateway.shared.metrics import SharedMetrics

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.25  # before the next try after a failure; twice that after the next one
MAX_WAIT_S = 5.0


class Reach:
    """Each part that uses the store tells of its own exchanges; it is away while one part fails."""

    def __init__(self, where: str, metrics: SharedMetrics) -> None:
        self._where = where
        self._metrics = metrics
        self._failures: dict[str, int] = {}  # in a row, by part
        self.was_reached = False  # ever

    def is_away(self, part: str) -> bool:
        """Whether the part's last exchange failed."""
        return part in self._failures

    def succeeded(self, part: str) -> None:
        """An exchange went well."""
        was_away = bool(self._failures)
        self.was_reached = True
        self._failures.pop(part, None)
        self._metrics.reached(time.time(), is_reachable=not self._failures)
        if was_away and not self._failures:
            log.info("%s can be reached again: state is shared", self._where)

    def failed(self, part: str, error: Exception) -> float:
        """An exchange failed; how long to wait before the next one, in seconds."""
        if not self._failures:
            log.warning(
                "%s can't be reached (%s): the gateway goes on with what it knows, and tenants "
                "have a share of their limits here",
                self._where,
                _reason(error),
            )
        number = self._failures.get(part, 0) + 1
        self._failures[part] = number
        self._metrics.failed()
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(number - 1, 10), MAX_WAIT_S)
        return wait_s * random.uniform(0.5, 1.0)  # or all gateways would come back at once


def _reason(error: Exception) -> str:
    """One line, without what a terminal would obey; a timeout says nothing itself."""
    text = " ".join(str(error).split())[:200]
    return "".join(mark if mark.isprintable() else "?" for mark in text) or type(error).__name__
