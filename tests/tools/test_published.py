"""The check of the simulator's model against published measurements."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.published.check import check, cross_predict, main
from tools.published.measurements import (
    MEASUREMENTS_PATH,
    STEP_COSTS_PATH,
    Measurement,
    read_measurements,
    read_step_ratios,
)
from tools.published.runtime import predict_speedups
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.profile import Profile
from trt_mtp.errors import InputError


def _few(tmp_path: Path, source: Path, keep: int) -> Path:
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = [row for row in rows if "rtx-5090" in row["source_url"]][:keep]
    path = tmp_path / source.name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(wanted)
    return path


def test_published_speedups_are_predicted_from_the_other_half(tmp_path: Path) -> None:
    """One source's rows, given without the rest, are predicted within a few percent."""
    measurements = _few(tmp_path, MEASUREMENTS_PATH, 200)
    report = check(measurements, _few(tmp_path, STEP_COSTS_PATH, 200))
    assert report["rows_predicted"] > 60
    assert report["median_abs_error"] < 0.06
    assert report["best_k_within_1"] >= 0.85
    assert report["per_source"][0]["rows_predicted"] == report["rows_predicted"]


def test_a_prediction_does_not_look_at_its_row(tmp_path: Path) -> None:
    """Changing the rows of one half changes nothing in what is predicted for that half."""
    rows = read_measurements(_few(tmp_path, MEASUREMENTS_PATH, 60))
    before = {id(p.row): p.predicted for p in cross_predict(rows, [])}
    target = next(iter(rows))
    changed = [replace(r, speedup=99.0, acceptance_length=None) if r is target else r for r in rows]
    after = cross_predict(changed, [])
    moved = next(p for p in after if p.row.speedup == 99.0)
    assert moved.predicted == pytest.approx(before[id(target)])


def test_derived_step_ratios_are_kept_from_their_own_source() -> None:
    """A ratio computed from a source's speedups is no help in predicting them."""
    rows = read_measurements(MEASUREMENTS_PATH)[:40]
    derived = [r for r in read_step_ratios(STEP_COSTS_PATH) if r.is_derived]
    own = [r for r in derived if r.source in {row.source for row in rows}]
    with_them = [p.predicted for p in cross_predict(rows, own)]
    assert with_them == [p.predicted for p in cross_predict(rows, [])]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"a,b\n1,2\n", "no column"), (b"\xff\xfe\x00", "can't be read")],
)
def test_files_that_are_no_measurements_are_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """The missing column or the encoding is named."""
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_measurements(tmp_path / "m.csv")


def test_rows_that_can_not_be_true_are_left_out(tmp_path: Path) -> None:
    """A draft length beyond all reason is no row, and a spreadsheet's byte order mark no column."""
    path = _few(tmp_path, MEASUREMENTS_PATH, 60)
    before = read_measurements(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        writer.writerows({**row, "K": "99999999"} for row in rows)
    assert read_measurements(path) == before


def test_the_tool_prints_a_table_and_json() -> None:
    """The same report for people and for programs."""
    report = json.loads(CliRunner().invoke(main, ["--json"]).stdout)
    told = CliRunner().invoke(main, []).stdout
    assert told.startswith(f"{report['rows_predicted']} speedups predicted")
    assert report["median_abs_error"] < 0.06


def test_what_choices_lose_comes_with_an_interval(tmp_path: Path) -> None:
    """Of both forms: the regret of the lengths that one fit would choose, not below 0."""
    measurements = _few(tmp_path, MEASUREMENTS_PATH, 200)
    report = check(measurements, _few(tmp_path, STEP_COSTS_PATH, 200))
    for figures in (report, report["gateway"]):
        mean, low, high = figures["regret"]
        assert 0 <= low <= mean <= high < 0.2
    assert report["gateway"]["median_abs_error"] < 0.1


def test_the_gateways_form_finds_its_own_numbers() -> None:
    """Speedups that are AL of one p over one table of R are predicted to a few percent."""
    cost = Profile().step_cost()
    lengths = {task: acceptance_lengths(prior_conditionals(p)) for task, p in
               (("code", 0.95), ("chat/explain", 0.6))}  # fmt: skip
    rows = [
        Measurement("s", "m", "rig", "mtp", task, task, "", "", 0.0, k, load, 0, lengths[task][k],
                    lengths[task][k] / cost.ratio(k, load))
        for task in lengths for k in (1, 2, 3, 5) for load in (1, 4, 8)
    ]  # fmt: skip
    asked = [row for row in rows if row.task_source != "code" and row.concurrency > 1]
    known = [row for row in rows if row not in asked]
    for row, speedup in zip(asked, predict_speedups(known, [], asked), strict=True):
        assert speedup == pytest.approx(row.speedup, rel=0.05)
