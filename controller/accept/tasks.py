"""The numbers per task that an acceptance takes from a short calibration."""

from collections.abc import Sequence

from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.accept.step import Facts
from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.tasks import TASKS

# one whose drafts are accepted most, one of the least, and one between, where a set has them
WANTED = ("structured_output", "coding", "writing")
CONCURRENCIES = (1, 4)


def shortest_set(
    prompts: str, variants: Sequence[EngineVariant]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tasks and concurrencies that say something in minutes."""
    known = read_prompt_set(prompts).prompts
    tasks = tuple(task for task in WANTED if task in known) or tuple(known)[: len(WANTED)]
    most = min(variant.record.max_batch_size for variant in variants)
    return tuple(sorted(tasks, key=TASKS.index)), tuple(c for c in CONCURRENCIES if c <= most)


def measured_tasks(profile: Profile) -> Facts:
    """Each measured cell, and each task's best length."""
    assert profile.calibration is not None  # it was just measured
    calibration, advice = profile.calibration, profile.calibration.recommendation
    cells = [
        {
            "task": cell.task,
            "draft_length": cell.draft_length,
            "concurrency": cell.concurrency,
            "num_requests": cell.num_requests,
            "acceptance_length": round(cell.acceptance_length, 3),
            "tokens_per_s": cell.tokens_per_s.value,
            "speedup": None if cell.speedup is None else list(cell.speedup),
            "is_failed": cell.ended == "failed",
        }
        for cell in calibration.cells
    ]
    best = [
        {
            "task": one.task,
            "concurrency": one.concurrency,
            "draft_length": one.draft_length,
            "speedup": list(one.speedup),
            "is_settled": one.is_settled,
        }
        for one in (advice.best if advice else ())
    ]
    return {"cells": cells, "best": best}
