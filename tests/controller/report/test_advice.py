"""What a report advises, and how sure it is of it."""

import re

import pytest

from tests.calibration_fixtures import simulated_profile
from trt_mtp.controller.calibration import BestLength, Crossover, Interval
from trt_mtp.controller.report.report import calibrated
from trt_mtp.controller.report.summary import Summary, summarize
from trt_mtp.controller.report.text import headline, hosting, next_step


def advising(
    *best: tuple[str, int, int],
    crossings: tuple[float | None, ...] = (),
    ties: tuple[int, ...] = (),
) -> Summary:
    """A calibration that advises these lengths: task, load, draft length."""
    profile = simulated_profile(["qa", "math"], [0, 1], [1])
    calibration = profile.calibration
    assert calibration is not None
    assert calibration.recommendation is not None
    advice = tuple(
        BestLength(
            task=t, concurrency=c, draft_length=k, speedup=Interval(1.2, 1.1, 1.3), ties=ties
        )
        for t, c, k in best
    )
    crossovers = tuple(Crossover(task="qa", draft_length=1, concurrency=c) for c in crossings)
    changed = calibration.recommendation.model_copy(update={"best": advice})
    update = {"recommendation": changed, "crossovers": crossovers}
    return summarize(profile, calibration.model_copy(update=update))


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([("qa", 1, 0), ("math", 1, 0)], "Use no speculation"),
        ([("qa", 1, 3), ("math", 1, 3)], "Use draft length 3 for every task."),
        ([("qa", 1, 1), ("math", 1, 0)], "Use draft length 1 for qa; none for math."),
        ([("qa", 1, 1)], "Only 1 request at a time was measured"),
        ([("qa", 1, 1), ("qa", 4, 1)], "stays faster up to 4 requests at a time"),
        ([("qa", 1, 1), ("qa", 4, 0)], "From 4 requests at a time on, use none."),
        (
            [("qa", 1, 1), ("qa", 4, 0), ("math", 1, 1), ("math", 4, 1), ("math", 8, 0)],
            "Use none from 4 requests at a time on for qa; from 8 on for math.",
        ),
        ([("qa", 1, 5), ("qa", 4, 3), ("qa", 8, 0)], "The best length changes with the load"),
    ],
)
def test_the_headline_says_what_to_do(best: list[tuple[str, int, int]], said: str) -> None:
    """Lengths by task first, then from which load on to use none."""
    assert said in " ".join(headline(advising(*best)))


def test_the_load_is_told_between_those_measured() -> None:
    """Where the last length stops winning between two loads, that is the number given."""
    best = [("qa", 1, 1), ("qa", 4, 1), ("qa", 8, 0)]
    assert "From 6 requests" in " ".join(headline(advising(*best, crossings=(5.2,))))
    assert "From 8 requests" in " ".join(headline(advising(*best, crossings=(11.0,))))
    assert "From 8 requests" in " ".join(headline(advising(*best, crossings=(None,))))


def test_what_is_unsure_is_said() -> None:
    """A gain that can't be told from no gain is no advice to rely on."""
    best = [("qa", 1, 1), ("math", 1, 0)]
    assert "uncertainty" not in " ".join(headline(advising(*best)))
    said = " ".join(headline(advising(*best, ties=(0,))))
    assert "For qa the gain is within the measurement's uncertainty." in said


def test_a_gain_at_a_higher_load_counts() -> None:
    """No speculation at one load, and drafting again above it, is no load to stop from."""
    assert advising(("qa", 1, 1), ("qa", 4, 0), ("qa", 8, 1)).tasks[0].none_from is None


def test_what_is_undecided_is_no_order() -> None:
    """Beside an undecided verdict nothing says "use": what is likeliest so far is named as that."""
    profile = simulated_profile(["qa", "math"])
    calibration = profile.calibration
    assert calibration is not None
    assert "use draft length" in " ".join(headline(calibrated(profile, "").summary))
    busy = {**calibration.environment, "disturbed_answers": "100000"}
    summary = summarize(profile, calibration.model_copy(update={"environment": busy}))
    said = " ".join(headline(summary))
    assert "ikeliest so far: draft length" in said
    assert not re.search(r"\b[Uu]se\b", said)
    assert "The best variant to host alone is, so far," in hosting(summary)
    assert next_step(summary, "p.json")[1].startswith("rm p.json.journal && ")
    # somebody else's file, and a command to copy
    assert "rm 'a;id.json.journal' && " in next_step(summary, "a;id.json")[1]
    assert next_step(summary, "a;id.json")[1].endswith("-o 'a;id.json'")


def test_holding_one_variant_is_said() -> None:
    """When routing gains less than its uncertainty, one variant is advised."""
    profile = simulated_profile(["qa"])
    assert "If you host one variant only" in hosting(calibrated(profile, "").summary)
    assert profile.calibration is not None
    assert profile.calibration.recommendation is not None
    held = profile.calibration.recommendation.model_copy(update={"hold_one": True})
    summary = summarize(profile, profile.calibration.model_copy(update={"recommendation": held}))
    assert "One variant is enough, the one with draft length 3" in hosting(summary)
