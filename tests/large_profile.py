"""The profile of a large deployment."""

from tests.calibrate_world import World, run
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibration import Calibration, Cell, Crossover, Interval, Percentiles
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.tasks import TASKS


def largest() -> Profile:
    """13 tasks, 6 variants, 8 loads, each cell with the longest numbers it is likely to have."""
    lengths, loads = (0, 1, 2, 3, 5, 7), (1, 2, 4, 8, 16, 32, 64, 128)
    times = Percentiles(1234.5, 2345.6, 3456.7)
    cells = tuple(
        Cell(
            task=task,
            draft_length=length,
            concurrency=load,
            num_requests=1024,
            num_output_tokens=262144,
            num_steps=123456,
            accepted_per_position=tuple(120000 - 10000 * j for j in range(length)),
            ttft_ms=times,
            tpot_ms=times,
            itl_ms=times,
            tokens_per_s=Interval(12345.0, 12234.0, 12456.0),
            speedup=Interval(1.2345, 1.1234, 1.3456) if length else None,
            ended="hopeless",
        )
        for task in TASKS
        for length in lengths
        for load in loads
    )
    world = World(dict.fromkeys(TASKS, 0.8), {k: dict.fromkeys(loads, 1.5) for k in lengths[1:]})
    settings = world.settings()
    run_info = RunInfo(
        "f0", {"device": "x"}, {}, "2026-01-01T00:00:00+00:00", "p", 0.0, 9, True, True
    )
    profile = profile_of(settings, run(world, settings, max_blocks=60), run_info)
    assert profile.calibration is not None
    crossovers = tuple(
        Crossover(task=task, draft_length=length, concurrency=12.345)
        for task in TASKS
        for length in lengths[1:]
    )
    calibration: Calibration = profile.calibration.model_copy(
        update={"cells": cells, "crossovers": crossovers, "unmeasured": ()}
    )
    return profile.model_copy(update={"calibration": calibration})
