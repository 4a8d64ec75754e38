"""Which variants may have a call that others have failed."""

import time

import pytest

from tests.lease_fixtures import call_of, replica_of
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.gateway.call import SAME_AGAIN_S, InferenceCall
from trt_mtp.controller.gateway.failure import VariantFailedError
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.response_rewriter import MAX_IDS_BYTES
from trt_mtp.controller.gateway.router import left_out
from trt_mtp.controller.gateway.servers.health import CallEnd
from trt_mtp.controller.gateway.servers.replica import Replica


class FailedLease(Lease):
    """A lease as `note_failure` sees it: of `replica`, without a token."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    has_begun = False


def may_have(call: InferenceCall, *replicas: Replica) -> list[str]:
    """The variants that are not left out."""
    states = {each.key: VariantState(each.key, 3, True, 0, 8, 4096) for each in replicas}
    excluded = left_out(call, replicas, states)
    return [replica.key for replica in replicas if replica.key not in excluded]


def fail(call: InferenceCall, replica: Replica, *, is_unreachable: bool = False) -> None:
    """The variant fails the call now, before its first token."""
    failure = VariantFailedError(
        "it broke", replica.key, CallEnd.FAILED, is_unreachable=is_unreachable
    )
    call.note_failure(FailedLease(replica), failure)


def test_one_that_answers_with_errors_gets_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says all the while that it is ready; another one may come back before it is asked."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    call, one, other = call_of(), replica_of("k3@a"), replica_of("k3@b")
    for pause_s in (SAME_AGAIN_S, 2 * SAME_AGAIN_S):
        fail(call, one)
        one.health.ready_at = clock[0] + 0.9 * pause_s
        assert may_have(call, one) == []
        assert may_have(call, one, other) == ["k3@b"]
        one.health.ready_at = clock[0] + 1.1 * pause_s
        assert may_have(call, one) == ["k3@a"]
        clock[0] += 2 * pause_s
    fail(call, one)
    assert not call.can_continue  # the request may be the cause


def test_an_answer_without_end_is_nobody_elses() -> None:
    """More tokens than any context holds would be another variant's failure as well."""
    call = call_of()
    call.emitted += bytes(MAX_IDS_BYTES)
    assert call.can_continue
    call.emitted += bytes(4)
    assert not call.can_continue


def test_one_that_could_not_be_reached_is_back_when_it_says_so() -> None:
    """Its readiness is news."""
    call, one = call_of(), replica_of("k3@a")
    fail(call, one, is_unreachable=True)
    assert may_have(call, one) == []
    one.health.ready_at = time.monotonic()
    assert may_have(call, one) == ["k3@a"]
