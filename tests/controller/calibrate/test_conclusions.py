"""The profile that comes of a calibration's answers."""

from tests.calibrate_world import World
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.results import Block, Results
from trt_mtp.controller.profile import Profile

SHIFTED = 6  # the first block whose prompts are of another kind
RUN = RunInfo("f0", {"device": "double"}, {}, "2026-01-01T00:00:00+00:00", "p", 0.0, 9, True, True)


def test_a_drift_alarm_within_a_calibration_is_no_part_of_its_profile() -> None:
    """Prompts that suddenly are predicted badly end in a profile that a gateway can start from."""
    acceptance = {"coding": 0.95}
    world = World(acceptance, {3: {1: 1.5}}, num_prompts=96)
    results = Results()
    for number in range(2 * SHIFTED):
        acceptance["coding"] = 0.95 if number < SHIFTED else 0.05
        block = Block(number, "coding", 1, (0, 3), tuple(range(8 * number, 8 * number + 8)))
        for length in block.draft_lengths:
            results.add(world.arm(block, length))
    profile = profile_of(world.settings(), results, RUN)
    assert {*profile.posteriors["coding/greedy/direct"]} == {"trials", "successes"}
    assert Profile.model_validate(profile.model_dump()).learned()["replicas"]
