"""Whatever a calibration holds, every format shows it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_mtp.controller.calibration import Calibration
from trt_mtp.controller.profile import Profile, parse_profile
from trt_mtp.controller.report.report import Report, calibrated, render
from trt_mtp.errors import InputError

TASKS = st.sampled_from(["coding", "qa", "<&> | _x_ $y$", "ä€"])
LENGTHS = st.sampled_from([0, 1, 3, 5])
LOADS = st.sampled_from([1, 2, 8, 128])
NUMBERS = st.floats(0, 1e6)
INTERVALS = st.tuples(NUMBERS, NUMBERS, NUMBERS)


@st.composite
def cells(draw: st.DrawFn) -> dict[str, Any]:
    """A measured cell, an empty one, or one that failed."""
    length = draw(LENGTHS)
    steps = draw(st.sampled_from([0, 1, 1000]))
    counts = sorted(draw(st.lists(st.integers(0, steps), max_size=length)), reverse=True)
    return {
        "task": draw(TASKS),
        "draft_length": length,
        "concurrency": draw(LOADS),
        "num_requests": draw(st.sampled_from([0, 1, 20])),
        "num_output_tokens": draw(st.integers(0, 5000)),
        "num_steps": steps,
        "accepted_per_position": counts,
        **{name: draw(INTERVALS) for name in ("ttft_ms", "tpot_ms", "itl_ms", "tokens_per_s")},
        "speedup": draw(st.none() | INTERVALS) if length else None,
        "ended": draw(st.sampled_from(["tight", "hopeless", "budget", "max", "failed"])),
    }


BEST = st.fixed_dictionaries(
    {"task": TASKS, "concurrency": LOADS, "draft_length": LENGTHS, "speedup": INTERVALS,
     "ties": st.lists(LENGTHS, max_size=2)}
)  # fmt: skip
RECOMMENDATIONS = st.fixed_dictionaries(
    {"draft_length": LENGTHS, "speedup": INTERVALS, "routed_speedup": INTERVALS,
     "hold_one": st.booleans(), "best": st.lists(BEST, max_size=4)}
)  # fmt: skip
CALIBRATIONS = st.fixed_dictionaries(
    {
        "created": st.just("2026-01-01T00:00:00+00:00"),
        "seed": st.just(0),
        "prompts": st.just("any"),
        "temperature": st.just(0.7),
        "max_tokens": st.just(128),
        "duration_s": NUMBERS,
        "tasks": st.lists(TASKS, unique=True),
        "draft_lengths": st.lists(LENGTHS, unique=True),
        "concurrencies": st.lists(LOADS, unique=True),
        "environment": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        "cells": st.lists(cells(), max_size=6),
        "unmeasured": st.lists(st.tuples(TASKS, LENGTHS, LOADS), max_size=2),
        "prediction": st.none()
        | st.fixed_dictionaries(
            {"num_cells": st.just(3), "median_abs_error": NUMBERS, "p90_abs_error": NUMBERS}
        ),
        "crossovers": st.lists(
            st.fixed_dictionaries(
                {"task": TASKS, "draft_length": LENGTHS, "concurrency": st.none() | NUMBERS}
            ),
            max_size=3,
        ),
        "recommendation": st.none() | RECOMMENDATIONS,
    }
)


def report(record: dict[str, Any]) -> Report:
    """The report of a calibration in JSON."""
    calibration = Calibration.model_validate_json(json.dumps(record))
    return Report((calibrated(Profile(calibration=calibration), "any.json"),), ())


@settings(max_examples=60)
@given(CALIBRATIONS)
def test_every_calibration_is_data(record: dict[str, Any]) -> None:
    """No valid calibration fails as Markdown, CSV or JSON."""
    made = report(record)
    for form in ("md", "csv", "json"):
        assert render(made, form)


@settings(max_examples=12)
@given(CALIBRATIONS)
def test_every_calibration_is_a_page(record: dict[str, Any]) -> None:
    """No valid calibration fails as a page."""
    assert render(report(record), "html").rstrip().endswith(b"</html>")


NOTHING = {
    "created": "2026-01-01T00:00:00+00:00", "seed": 0, "prompts": "any", "temperature": 0.0,
    "max_tokens": 1, "duration_s": 0.0, "tasks": [], "draft_lengths": [], "concurrencies": [],
    "environment": {}, "cells": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unmeasured", [["qa", 1025, 1]]),  # what is predicted takes the square of the length
        ("unmeasured", [["qa", -1, 1]]),
        ("unmeasured", [["qa", 3, 0]]),
        ("draft_lengths", [10**9]),
        ("concurrencies", [10**300]),
    ],
)
def test_lengths_and_loads_are_those_that_can_be(key: str, value: Any) -> None:
    """A few bytes of somebody's profile take no hours."""
    parse_profile({"calibration": NOTHING}, "p.json")
    with pytest.raises(InputError, match=rf"p\.json: calibration\.{key}\.0"):
        parse_profile({"calibration": NOTHING | {key: value}}, "p.json")
