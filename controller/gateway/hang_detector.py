"""Answers that don't come: how long a message may take, and who looks."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost
from trt_mtp.serve.contract import LONG_BYTES, MAX_HOLD_S

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.lease import Lease

WATCH_S = 0.1
PREFILL_S_PER_TOKEN = 0.002  # until a variant's own is known; rather slow
MIN_PROMPT_TOKENS = 64.0
NEW_SHARE = 0.2  # of the latest prefill time in what is remembered
# for what a variant reads before a grammar or a long prompt, one after the other and seconds each:
# anybody may send dozens that are refused, and the variant answers all other requests meanwhile
READING_S = 120.0
READ_S = 10.0  # for one of them, with the start of another process for the next


@dataclass(frozen=True, slots=True)
class StallLimits:
    """A message that takes longer than expected by `factor`, and than `min_s`, won't come."""

    factor: float = 20.0
    min_s: float = 5.0


class HangDetector:
    """Gives up the streams whose next message is overdue."""

    def __init__(self, limits: StallLimits, scoreboard: Scoreboard | None = None) -> None:
        """`scoreboard` is where the workers of a gateway tell each other what was answered."""
        self._limits = limits
        self._scoreboard = scoreboard or Scoreboard()
        self._watched: dict[Lease, None] = {}  # in order

    def add(self, lease: "Lease") -> None:
        """Watch the stream of a lease."""
        self._watched[lease] = None

    def remove(self, lease: "Lease") -> None:
        """Watch it no longer, if it was."""
        self._watched.pop(lease, None)

    def leases(self) -> "list[Lease]":
        """The leases whose answers are being read."""
        return list(self._watched)

    def give_up_on(self, replica: Replica) -> None:
        """Give up all that is read from a variant: its process is taken for dead by Triton.

        Other workers' leases as well, when they `look`. A process that was only stopped may go on,
        and what it was sent next is then answered twice, its tokens in turns, before Triton 2.51
        crashes (docs/reliability.md).
        """
        replica.backend.look_soon()
        self._died_at(replica)[0] = time.monotonic()
        for lease in self._watched:
            if lease.replica is replica:
                lease.upstream.give_up(_dead())

    def look(self) -> None:
        """Give up what is overdue; call it every now and then.

        Its server is asked for a sign of life before: where it gives none, neither the variant nor
        the request is to blame. What a process has that another worker knows to be dead is given up
        as well.
        """
        now = time.monotonic()
        for lease in list(self._watched):
            if self._died_at(lease.replica)[0] > lease.begun_at:
                lease.upstream.give_up(_dead())
                continue
            since = self._turn_since(lease, now)
            limit_s = max(self._limits.min_s, MAX_HOLD_S + expected_s(lease) * self._limits.factor)
            if _waits_to_be_read(lease, now - limit_s - READ_S):
                limit_s = max(limit_s, READING_S)
            if not since or now - since <= limit_s / 2:
                continue
            backend = lease.replica.backend
            is_server_heard = backend.heard_at > since + limit_s / 2
            if now - since > limit_s:
                lease.upstream.give_up(_hung() if is_server_heard else _unheard())
            elif not is_server_heard:
                backend.look_soon()

    def note_first(self, lease: "Lease", waited_s: float) -> None:
        """A variant begins an answer: learn how long it takes for that, queueing included.

        Nothing of a request that may have waited until those of others were read, nor of one whose
        tokens aren't told: an estimate is what its sender makes it, and hangs are told by this.
        """
        replica, num_input = lease.replica, lease.num_input_tokens
        self.note_answer(replica, time.monotonic(), waited_s)
        if not lease.call.is_streaming or _is_read_apart(lease) or num_input is None:
            return
        seen = waited_s / _context_tokens(lease, num_input)
        known = replica.prefill_s_per_token
        replica.prefill_s_per_token = seen if known is None else known + NEW_SHARE * (seen - known)

    def note_answer(self, replica: Replica, now: float, waited_s: float) -> None:
        """A variant begins the answer to a request `waited_s` after it was sent that."""
        at, sent_at = self._last_answer(replica)
        at[0], sent_at[0] = now, now - waited_s

    def _last_answer(self, replica: Replica) -> "tuple[memoryview[float], memoryview[float]]":
        """When a variant last began one, through any worker, and when it was sent the request.

        The times of the counters that the router has of it, who has no use for them.
        """
        counter = self._scoreboard.counter
        return counter("running", replica.key).time, counter("on trial", replica.key).time

    def _died_at(self, replica: Replica) -> "memoryview[float]":
        """The monotonic time when the variant's process was last known to be dead."""
        return self._scoreboard.counter("died", replica.key).time

    def _turn_since(self, lease: "Lease", now: float) -> float:
        """Since when its next message is waited for; 0 while none is.

        A variant that begins the answers to requests which it was sent before has the prompts of
        these to read first: anybody may send many long ones. The time begins anew with each.
        """
        since = lease.upstream.waiting_since
        if since and not lease.has_begun and now - since <= READING_S:
            [at], [sent_at] = self._last_answer(lease.replica)
            if sent_at <= since:
                return max(since, at)
        return since


def expected_s(lease: "Lease") -> float:
    """How long the next message of a lease takes, by what is known of its variant."""
    step_s = lease.decision.chosen.step_s  # that the decision counted with
    if not lease.call.is_streaming:
        most = min(lease.call.features.max_tokens, lease.replica.max_seq_len)
        return _prefill_s(lease) + step_s * most
    return step_s if lease.has_begun else step_s + _prefill_s(lease)


def _is_read_apart(lease: "Lease") -> bool:
    """Whether a variant reads it after others of its kind: see serve/long_prompts.py."""
    call = lease.call
    num_bytes = len(call.request.raw) + len(call.emitted)
    return call.features.is_guided or num_bytes > LONG_BYTES


def _waits_to_be_read(lease: "Lease", since: float) -> bool:
    """Whether a variant that has sent somebody a message `since` may not have read the request."""
    is_unread = _is_read_apart(lease) and not lease.has_begun
    return is_unread and lease.replica.health.heard_at > since


def _hung() -> UpstreamLost:
    return UpstreamLost("it sent nothing for too long", is_hung=True)


def _dead() -> UpstreamLost:
    return UpstreamLost("its process is gone")


def _unheard() -> UpstreamLost:
    return UpstreamLost("its server sent nothing for too long", grpc.StatusCode.UNAVAILABLE)


def _prefill_s(lease: "Lease") -> float:
    known = lease.replica.prefill_s_per_token
    return _context_tokens(lease) * (PREFILL_S_PER_TOKEN if known is None else known)


def _context_tokens(lease: "Lease", num_input: int = 0) -> float:
    call = lease.call
    num_prompt = num_input or call.features.prompt_tokens
    return max(num_prompt + len(call.emitted) / 4, MIN_PROMPT_TOKENS)
