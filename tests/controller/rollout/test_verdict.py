"""The first thing that `rollout explain` says: what its gates have come to."""

from typing import Any

import pytest

from trt_mtp.controller.rollout.control import Status
from trt_mtp.controller.rollout.store import Phase, Rollout
from trt_mtp.controller.rollout.verdict import verdict

NOTHING: dict[str, Any] = {}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("direction", ["forward", "back"])
def test_every_phase_has_a_verdict(phase: Phase, direction: str) -> None:
    """One sentence, also where nothing was seen yet."""
    rollout = Rollout(1, "n", "d", phase, 3, direction, "", NOTHING, 0.0)
    assert verdict(Status(rollout, "", NOTHING), 50).startswith("verdict")


@pytest.mark.parametrize(
    ("num_requests", "says"),
    [
        (12, "verdict so far: none, 12 of 50 requests of the canary were seen"),
        (1234, "verdict so far: no gate failed in 1,234 requests of the canary (50 are needed)"),
    ],
)
def test_too_few_requests_are_no_verdict(num_requests: int, says: str) -> None:
    """Before there are enough, nothing is said for or against the new side."""
    rollout = Rollout(1, "n", "d", Phase.RUNNING, 3, "forward", "", NOTHING, 0.0)
    assert verdict(Status(rollout, "", {"num_requests": num_requests}), 50) == says
