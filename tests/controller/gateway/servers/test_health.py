"""When a variant may be sent requests: the circuit breaker, step by step and as a state machine."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trt_mtp.controller.gateway.servers.health import (
    EJECTION_S,
    FAILURES_TO_EJECT,
    JITTER,
    MAX_EJECTION_S,
    CallEnd,
    Health,
)


def ready(jitter: float = 0.5) -> Health:
    """A variant that is ready at time 0; a jitter of 0.5 is none."""
    health = Health(lambda: jitter)
    health.poll(True, 0.0)
    return health


def call(health: Health, how: CallEnd, now_s: float) -> None:
    """One request from beginning to end."""
    health.end(health.begin(), how, now_s)


def test_nothing_is_sent_before_it_is_ready() -> None:
    """A variant takes requests once its server says so, and no more after a connection failed."""
    health = Health()
    assert not health.can_take(0.0)
    health.poll(True, 0.0)
    assert health.can_take(0.0)
    health.suspect()
    assert not health.can_take(0.0)


def test_failures_in_a_row_eject_and_others_do_not() -> None:
    """An answer between failures clears the count; clients that leave say nothing."""
    health = ready()
    for _ in range(FAILURES_TO_EJECT - 1):
        call(health, CallEnd.FAILED, 1.0)
    call(health, CallEnd.ANSWERED, 1.0)
    for _ in range(FAILURES_TO_EJECT - 1):
        call(health, CallEnd.FAILED, 1.0)
        call(health, CallEnd.ABANDONED, 1.0)
    assert health.can_take(1.0)
    call(health, CallEnd.FAILED, 1.0)
    assert not health.can_take(1.0)


def test_ejections_without_end_are_not_longer_than_the_longest() -> None:
    """A variant that fails for days, and is asked because there is no other."""
    health, now_s = ready(), 0.0
    for _ in range(5_000):
        now_s += 2 * MAX_EJECTION_S if health.is_ejected else 0.0
        call(health, CallEnd.FAILED, now_s)
    assert health.can_take(now_s + MAX_EJECTION_S)


def test_an_error_is_no_sign_of_life() -> None:
    """A variant that answers with errors alone is asked whether it is ready."""
    health = ready()
    health.heard_at = 5.0
    call(health, CallEnd.ANSWERED, 5.0)
    assert health.heard_at == 5.0
    call(health, CallEnd.BLAMED, 5.0)
    assert health.heard_at == 0.0


def test_what_one_caller_meets_alone_ejects_nothing() -> None:
    """A hang that two callers meet, with no answer in between, is the variant's."""
    health = ready()
    for _ in range(5):
        health.end(health.begin(), CallEnd.SILENT, 0.0, "one")
    assert not health.is_ejected
    call(health, CallEnd.ANSWERED, 0.0)
    health.end(health.begin(), CallEnd.SILENT, 0.0, "other")
    health.answer(health.begin())
    health.end(health.begin(), CallEnd.SILENT, 0.0, "one")
    assert not health.is_ejected
    health.end(health.begin(), CallEnd.SILENT, 0.0, "other")
    assert health.is_ejected


def test_a_probe_that_hangs_ejects_again() -> None:
    """What the variant was ejected for was met by others."""
    health = ready()
    call(health, CallEnd.HUNG, 0.0)
    health.end(health.begin(), CallEnd.SILENT, EJECTION_S, "one")
    assert not health.can_take(2 * EJECTION_S)


def test_one_probe_decides() -> None:
    """After the time is over one request goes there; it closes the circuit, or opens it longer."""
    health = ready()
    call(health, CallEnd.HUNG, 0.0)
    assert not health.can_take(EJECTION_S - 0.01)
    assert health.can_take(EJECTION_S)
    probe = health.begin()
    assert not health.can_take(EJECTION_S)
    health.end(probe, CallEnd.FAILED, EJECTION_S)
    assert not health.can_take(3 * EJECTION_S - 0.01)
    assert health.can_take(3 * EJECTION_S)
    call(health, CallEnd.ANSWERED, 3 * EJECTION_S)
    assert not health.is_ejected


def test_a_probe_that_gives_tokens_need_not_be_over() -> None:
    """An answer may take minutes: its beginning lets others in, its failure counts as any."""
    health = ready()
    call(health, CallEnd.HUNG, 0.0)
    probe = health.begin()
    health.answer(probe)
    assert health.can_take(0.0)
    health.end(probe, CallEnd.HUNG, 0.0)
    assert not health.can_take(EJECTION_S)
    assert health.can_take(2 * EJECTION_S)


def test_calls_from_before_an_ejection_say_nothing_after_it() -> None:
    """Many requests that fail together are one failure of the variant, not many ejections."""
    health = ready()
    begun = [health.begin() for _ in range(20)]
    for number in begun:
        health.end(number, CallEnd.FAILED, 0.0)
    assert health.can_take(EJECTION_S)
    health.end(health.begin(), CallEnd.ABANDONED, EJECTION_S)
    assert health.can_take(EJECTION_S)


def test_a_server_that_comes_back_is_probed_at_once() -> None:
    """Becoming ready ends the time of an ejection, but the first request still decides alone."""
    health = ready()
    call(health, CallEnd.HUNG, 0.0)
    health.poll(False, 0.1)
    health.poll(True, 0.2)
    assert health.can_take(0.2)
    health.begin()
    assert not health.can_take(0.2)


class Breaker(RuleBasedStateMachine):
    """Any sequence of calls, polls and waiting."""

    def __init__(self) -> None:
        """Not ready yet."""
        super().__init__()
        self.jitter = 0.5
        self.health = Health(lambda: self.jitter)
        self.now_s = 0.0
        self.begun: list[int] = []
        self.probes = 0  # begun while ejected, and not over

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds

    @rule(is_ready=st.booleans())
    def poll(self, is_ready: bool) -> None:
        """The server is asked."""
        self.health.poll(is_ready, self.now_s)

    @rule()
    def suspect(self) -> None:
        """A connection breaks."""
        self.health.suspect()

    @precondition(lambda self: self.health.can_take(self.now_s))
    @rule()
    def begin(self) -> None:
        """A request is sent, as it may be."""
        was_ejected = self.health.is_ejected
        self.begun.append(self.health.begin())
        assert self.health.can_take(self.now_s) is not was_ejected

    @precondition(lambda self: bool(self.begun))
    @rule(index=st.integers(0, 100))
    def answer(self, index: int) -> None:
        """A request gets its first tokens."""
        was_ejected = self.health.is_ejected
        self.health.answer(self.begun[index % len(self.begun)])
        assert was_ejected or not self.health.is_ejected

    @precondition(lambda self: bool(self.begun))
    @rule(how=st.sampled_from(CallEnd), index=st.integers(0, 100), jitter=st.floats(0, 1))
    def end(self, how: CallEnd, index: int, jitter: float) -> None:
        """A request ends."""
        self.jitter = jitter
        begun, was_ejected = self.begun.pop(index % len(self.begun)), self.health.is_ejected
        self.health.end(begun, how, self.now_s)
        if how in (CallEnd.ANSWERED, CallEnd.ABANDONED):
            assert was_ejected or not self.health.is_ejected
        if how is CallEnd.HUNG and not was_ejected:
            assert self.health.is_ejected or begun != self.health.begin()

    @invariant()
    def it_always_comes_back(self) -> None:
        """Whatever happened, a ready variant without a probe takes a request in the end."""
        later_s = self.now_s + MAX_EJECTION_S * (1 + JITTER)
        if self.health.is_ready and not self.begun:
            assert self.health.can_take(later_s)

    @invariant()
    def nothing_is_sent_to_what_is_not_ready(self) -> None:
        """Readiness comes before all else."""
        assert self.health.is_ready or not self.health.can_take(self.now_s)


TestBreaker = Breaker.TestCase
