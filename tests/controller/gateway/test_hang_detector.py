"""Who is taken to hang: not a variant that has others' grammars to read first."""

import time
from dataclasses import replace

import pytest

from tests.lease_fixtures import BackendDouble, StreamDouble, call_of, lease_of
from trt_mtp.controller.gateway.hang_detector import GRAMMARS_S, HangDetector, StallLimits
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost


class WaitingStream(StreamDouble):
    """A stream that nothing comes on."""

    given_up: UpstreamLost | None = None

    def give_up(self, why: UpstreamLost) -> None:
        """Keep why."""
        self.given_up = why


def overdue(lease: Lease, *, waited_s: float, heard_s: float) -> bool:
    """Is it given up that long after it was sent, when somebody heard from its variant before?"""
    now = time.monotonic()
    backend = BackendDouble()
    lease.replica.backend = backend  # type: ignore[assignment]
    stream = WaitingStream(backend, backend.take_stream().script)
    stream.waiting_since = now - waited_s
    lease._upstream = stream  # type: ignore[assignment]
    lease.replica.heard(now - heard_s)
    detector = HangDetector(StallLimits())
    detector.add(lease)
    detector.look()
    return stream.given_up is not None


def lease(*, is_guided: bool) -> Lease:
    """A lease of a request, which has a grammar or none."""
    call = call_of("mine")
    call.features = replace(call.features, is_guided=is_guided)
    return lease_of(call)


@pytest.mark.parametrize(
    ("is_guided", "waited_s", "heard_s", "is_overdue"),
    [
        (False, 30.0, 0.1, True),
        (True, 30.0, 0.1, False),  # it answers others: the grammars before this one are read
        (True, 30.0, 29.0, True),  # it answers nobody
        (True, GRAMMARS_S + 1, 0.1, True),
        (True, 1.0, 0.1, False),
    ],
)
def test_others_grammars_are_waited_for(
    is_guided: bool, waited_s: float, heard_s: float, is_overdue: bool
) -> None:
    """Or a few bad ones would take variants away, and fail who sends a good one."""
    waiting = lease(is_guided=is_guided)
    assert overdue(waiting, waited_s=waited_s, heard_s=heard_s) is is_overdue


def test_a_wait_for_grammars_is_no_measure_of_prompts() -> None:
    """Or a hang would be seen minutes later than it can be."""
    guided, plain = lease(is_guided=True), lease(is_guided=False)
    detector = HangDetector(StallLimits())
    for each, known in ((guided, None), (plain, 18.0 / 64)):
        detector.note_first(each, 18.0)
        assert each.replica.prefill_s_per_token == known
