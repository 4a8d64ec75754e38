"""May a variant take a request: what its readiness says, and what calls to it did.

Outlier ejection with half-open probes, as a circuit breaker has them: a variant whose calls fail
one after the other, or hang, gets nothing for a while; then one request, whose end decides. What
hangs for one caller alone is no evidence: its requests may be what makes variants hang.
"""

from collections.abc import Callable
from enum import Enum

from trt_mtp.controller.gateway.draws import DRAWS

FAILURES_TO_EJECT = 3  # one after the other; hangs that two callers meet are enough
EJECTION_S = 2.0  # the first time, twice as long each further time
MAX_EJECTION_S = 60.0  # as long without an ejection, and the next is a first one again
JITTER = 0.25  # of a duration, both ways: several gateways don't come back at once


class CallEnd(Enum):
    """What a call says of the variant that it went to."""

    ANSWERED = "answered"
    FAILED = "failed"
    BLAMED = "blamed"  # an error in place of an answer, which may be the request's own fault
    SILENT = "silent"  # it hung, which may be the request's own fault
    HUNG = "hung"  # and another variant answered the request
    ABANDONED = "abandoned"  # by the client: says nothing


class Health:
    """The state of one variant on one server. Times are of any one monotonic clock, in seconds."""

    __slots__ = (
        "_calm_at",
        "_ejected_until",
        "_epoch",
        "_is_probed",
        "_jitter",
        "_met_by",
        "_num_ejections",
        "_num_failures",
        "heard_at",
        "is_ready",
        "ready_at",
    )

    def __init__(self, jitter: Callable[[], float] = DRAWS.random) -> None:
        """`jitter` gives numbers from 0 to 1."""
        self.is_ready = False
        self.ready_at = 0.0  # when it last said so, or answered a request
        self.heard_at = 0.0  # when a message of its came
        self._jitter = jitter
        self._num_failures = 0  # one after the other
        self._num_ejections = 0  # since it was last calm
        self._calm_at = 0.0
        self._ejected_until: float | None = None
        self._is_probed = False
        self._met_by: object = None  # the caller whose request hung, since the last answer
        self._epoch = 0  # counts ejections: a call that began before one says nothing after it

    def can_take(self, now_s: float) -> bool:
        """True where a request may be sent: ready, and not ejected or due for a probe."""
        if not self.is_ready:
            return False
        until = self._ejected_until
        return until is None or (now_s >= until and not self._is_probed)

    @property
    def is_ejected(self) -> bool:
        """True from an ejection until a probe was answered."""
        return self._ejected_until is not None

    def begin(self) -> int:
        """A request is sent; hand what this returns to `end`."""
        self._is_probed = self.is_ejected
        return self._epoch

    def answer(self, begun: int) -> None:
        """A request that `begin` began gets its first tokens: for a probe that is enough."""
        if begun != self._epoch:
            return
        self._met_by = None
        if self.is_ejected:
            self._ejected_until, self._is_probed = None, False

    def end(self, begun: int, how: CallEnd, now_s: float, caller: object = None) -> None:
        """A request that `begin` began is over; `caller` is whose it was."""
        if begun != self._epoch:
            return
        if how is CallEnd.SILENT:
            how = self._silent(caller)
        if how in (CallEnd.FAILED, CallEnd.BLAMED, CallEnd.HUNG):
            self.heard_at = 0.0  # an error is no sign of life: the server is asked
        if how is CallEnd.ANSWERED:
            self._num_failures, self._ejected_until, self._met_by = 0, None, None
            self.ready_at = now_s
        elif how is CallEnd.FAILED:
            self._num_failures += 1
            if self.is_ejected or self._num_failures >= FAILURES_TO_EJECT:
                self._eject(now_s)
        elif how is CallEnd.HUNG:
            self._eject(now_s)
        self._is_probed = False

    def _silent(self, caller: object) -> CallEnd:
        """A hang is the variant's if another caller met one, too, and nobody got an answer since.

        A probe's is, because it was ejected for hangs or failures that others met.
        """
        met_by, self._met_by = self._met_by, caller
        is_shared = met_by is not None and met_by != caller
        return CallEnd.HUNG if is_shared or self.is_ejected else CallEnd.SILENT

    def poll(self, is_ready: bool, now_s: float) -> None:
        """What the server says of its variant; one that comes back is due for a probe at once."""
        if is_ready and not self.is_ready and self._ejected_until is not None:
            self._ejected_until = min(self._ejected_until, now_s)
        self.is_ready = is_ready
        if is_ready:
            self.ready_at = now_s

    def suspect(self) -> None:
        """The connection failed: not ready until the server says so."""
        self.is_ready = False

    def _eject(self, now_s: float) -> None:
        if self._ejected_until is None and now_s > self._calm_at:
            self._num_ejections = 0
        seconds = min(EJECTION_S * 2.0 ** min(self._num_ejections, 16), MAX_EJECTION_S)
        self._ejected_until = now_s + seconds * (1 + JITTER * (2 * self._jitter() - 1))
        self._calm_at = self._ejected_until + MAX_EJECTION_S
        self._num_ejections += 1
        self._num_failures, self._met_by = 0, None
        self._epoch += 1
