"""Does the plan of a calibration recommend what measuring every cell recommends, and how fast?

`python -m benchmarks.calibrate_embedded [--all-cells-budget SECONDS]`

`trt-mtp calibrate --embedded` on the small checkpoint, from building to the written profile, then
every cell of the same variants; both compared task by task and load by load.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from trt_mtp.controller.calibrate.calibrate import Options
from trt_mtp.controller.calibrate.calibrate_cli import EMBEDDED_BUDGET, seconds
from trt_mtp.controller.calibrate.embedded import run_embedded
from trt_mtp.controller.calibration import BestLength, Recommendation
from trt_mtp.controller.profile import Profile
from trt_mtp.progress import shown

LENGTHS = "0,1,2,3,5"


def advice(profile: Profile) -> Recommendation:
    """What the profile recommends."""
    assert profile.calibration is not None
    assert profile.calibration.recommendation is not None
    return profile.calibration.recommendation


def verdict(planned: BestLength, complete: BestLength) -> str:
    """Same length, one that can't be told from it, or another."""
    if planned.draft_length == complete.draft_length:
        return "same"
    is_tie = planned.draft_length in complete.ties or complete.draft_length in planned.ties
    return "within the interval" if is_tie else "OTHER"


def main() -> None:
    """Run both and print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all-cells-budget", type=float, default=300.0)
    parser.add_argument("--budget", type=float, default=seconds("--budget", EMBEDDED_BUDGET))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, shown("s") as meter:
        engines = Path(folder) / "engines"
        options = Options("", Path(folder) / "planned.json", budget_s=arguments.budget)
        start = time.monotonic()
        planned = run_embedded(None, LENGTHS, engines, None, options, meter)
        whole_s = time.monotonic() - start
        options = replace(
            options,
            out=Path(folder) / "complete.json",
            all_cells=True,
            budget_s=arguments.all_cells_budget,
        )
        complete = run_embedded(None, LENGTHS, engines, None, options, meter)
    pairs = list(zip(advice(planned).best, advice(complete).best, strict=True))
    verdicts = [verdict(one, other) for one, other in pairs]
    assert planned.calibration is not None
    assert complete.calibration is not None
    result = {
        "whole_run_s": round(whole_s, 1),
        "measured_s": planned.calibration.duration_s,
        "cells_measured": len(planned.calibration.cells),
        "all_cells_s": complete.calibration.duration_s,
        "all_cells_measured": len(complete.calibration.cells),
        "prediction": planned.calibration.prediction
        and planned.calibration.prediction.model_dump(),
        "verdicts": {
            name: verdicts.count(name) for name in ("same", "within the interval", "OTHER")
        },
        "single": [advice(planned).draft_length, advice(complete).draft_length],
        "choices": [
            f"{one.task} at {one.concurrency}: K={one.draft_length} {one.speedup.value:.2f} "
            f"({one.speedup.low:.2f}-{one.speedup.high:.2f}), every cell: K={other.draft_length} "
            f"{other.speedup.value:.2f} ({other.speedup.low:.2f}-{other.speedup.high:.2f}): {said}"
            for (one, other), said in zip(pairs, verdicts, strict=True)
        ],
        "disturbed": [
            profile.environment["disturbed_answers"]
            for profile in (planned.calibration, complete.calibration)
        ],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
