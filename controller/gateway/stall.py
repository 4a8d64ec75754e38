"""Answers that don't come: how long a message may take, and who looks."""

import time
from dataclasses import dataclass

from trt_mtp.controller.gateway.backend import Hosted
from trt_mtp.controller.gateway.flight import Attempt, Flight
from trt_mtp.controller.gateway.upstream import Upstream
from trt_mtp.controller.policy import CHARS_PER_TOKEN

WATCH_S = 0.5
PREFILL_S_PER_TOKEN = 0.002  # until a variant's own is known; rather slow
MIN_PROMPT_TOKENS = 64.0
NEW_SHARE = 0.2  # of the latest prefill time in what is remembered


@dataclass(frozen=True, slots=True)
class StallLimits:
    """A message that takes longer than expected by `factor`, and than `min_s`, won't come."""

    factor: float = 20.0
    min_s: float = 5.0


class StallWatch:
    """Gives up the streams whose next message is overdue."""

    def __init__(self, limits: StallLimits) -> None:
        self._limits = limits
        self._watched: dict[Upstream, Flight] = {}

    def add(self, upstream: Upstream, flight: Flight) -> None:
        """Watch the stream that a flight reads."""
        self._watched[upstream] = flight

    def remove(self, upstream: Upstream) -> None:
        """Watch it no longer."""
        self._watched.pop(upstream, None)

    def flights(self) -> list[Flight]:
        """The flights that are being read."""
        return list(self._watched.values())

    def give_up_on(self, variant: Hosted) -> None:
        """Give up all that is read from a variant: its process is known to be dead."""
        for upstream, flight in self._watched.items():
            if flight.attempt is not None and flight.attempt.variant is variant:
                upstream.give_up()

    def look(self) -> None:
        """Give up what is overdue; call it every now and then."""
        now_s = time.monotonic()
        for upstream, flight in list(self._watched.items()):
            waited_s = now_s - upstream.waiting_since_s
            limit_s = max(self._limits.min_s, expected_s(flight) * self._limits.factor)
            if upstream.waiting_since_s and waited_s > limit_s:
                upstream.give_up()


def expected_s(flight: Flight) -> float:
    """How long the next message of a flight takes, by what is known of its variant."""
    attempt = flight.attempt
    assert attempt is not None
    step_s = attempt.decision.chosen.step_s  # that the decision counted with
    if not flight.is_streaming:
        return _prefill_s(flight, attempt) + step_s * flight.features.max_tokens
    return step_s if attempt.reader.last else step_s + _prefill_s(flight, attempt)


def note_first(flight: Flight, waited_s: float) -> None:
    """Learn how long the variant takes for the first message, queueing included."""
    attempt = flight.attempt
    assert attempt is not None
    variant, seen = attempt.variant, waited_s / _context_tokens(flight)
    known = variant.prefill_s_per_token
    variant.prefill_s_per_token = seen if known is None else known + NEW_SHARE * (seen - known)


def _prefill_s(flight: Flight, attempt: Attempt) -> float:
    known = attempt.variant.prefill_s_per_token
    return _context_tokens(flight) * (PREFILL_S_PER_TOKEN if known is None else known)


def _context_tokens(flight: Flight) -> float:
    prompt = flight.features.num_prompt_tokens or flight.features.num_chars / CHARS_PER_TOKEN
    return max(prompt + len(flight.emitted) / 4, MIN_PROMPT_TOKENS)
