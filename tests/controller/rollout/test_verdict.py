"""The first thing that `rollout explain` says: what its gates have come to."""

from typing import Any

import pytest

from trt_mtp.controller.rollout.control import Status
from trt_mtp.controller.rollout.gate_table import gate_table
from trt_mtp.controller.rollout.gates import GateResult
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


def test_the_gates_are_a_table_of_80_columns() -> None:
    """A line per gate, with the longest names and large counts; what failed says so."""
    gates = [
        GateResult("acceptance_length", "structured_output", 99_999, 99_999, 0.138, "relative",
                   1e-5, 0.00031, True, 0.05),
        GateResult("tok_s", "coding", 22, 22, -0.008, "relative", 1.0, 0.00031, False, 0.081),
        GateResult("ttft_p95", None, 159, 208, 0.025, "share of requests", 0.65, 0.00031, False),
    ]  # fmt: skip
    lines = list(gate_table(gates))
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith("13.8% worse   99999/99999   1e-05    FAILED")
    assert lines[2].split() == ["tok_s", "coding", "0.8%", "better", "22/22", "1", "8.1%"]
    assert lines[3].split() == ["ttft_p95", "all", "+2.5%", "beyond", "159/208", "0.65"]
    assert list(gate_table([])) == []
