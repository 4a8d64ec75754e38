"""What a report says, in each of its formats."""

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.calibration_fixtures import CONCURRENCIES, LENGTHS, TASKS, simulated_profile
from tests.calibration_fixtures import simulated_replay as make_replay
from tests.conftest import CliResult
from trt_mtp.controller.calibration import Calibration, CellKey, Interval
from trt_mtp.controller.cells import by_key, predicted_speedup
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.controller.report import tables as report_tables
from trt_mtp.controller.report.report import Report, calibrated, read_report, render
from trt_mtp.controller.report.summary import Summary, summarize
from trt_mtp.controller.report.text import BASIS, headline
from trt_mtp.errors import InputError
from trt_mtp.files import to_json

Cli = Callable[..., CliResult]


class Tables(HTMLParser):
    """The tables of a page by their captions, as lines of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._caption = self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "tr":
            self.found[self._caption].append([])
        elif tag in ("th", "td"):
            self.found[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "caption":
            self._caption = data
            self.found[data] = []
        elif self._tag in ("th", "td", "b"):
            self.found[self._caption][-1][-1] += data


def one(profile: Profile) -> Report:
    """The report of one profile."""
    return Report((calibrated(profile, "profile.json"),), ())


def summary_of(profile: Profile) -> Summary:
    return calibrated(profile, "").summary


def test_without_a_plain_variant_there_is_no_advice() -> None:
    """Nothing to compare with is said, in every format."""
    profile = simulated_profile(["qa"], [1, 3], [1, 2])
    assert "No advice" in headline(summary_of(profile))[0]
    for form in ("html", "md"):
        assert "No advice" in render(one(profile), form).decode()


def test_a_spreadsheet_runs_nothing() -> None:
    """A name that would be a formula is text."""
    profile = simulated_profile(["qa"]).model_copy(update={"fingerprint": "=cmd|' /C calc'!A0"})
    rows = list(csv.reader(render(one(profile), "csv").decode().splitlines()))
    assert {row[1] for row in rows[1:]} == {"'=cmd|' /C calc'!A0"}
    assert {row[2] for row in rows[1:]} == {"qa"}


def test_estimated_and_measured_speedups_stand_side_by_side() -> None:
    """Of one cell both are shown, and how few answers the cell's own has, if they are few."""
    profile = simulated_profile(["qa"])
    assert profile.calibration is not None
    odd = Interval(13.02, 1.3, 130.0)
    cells = tuple(
        cell.model_copy(update={"speedup": odd, "num_requests": 2}) if cell.draft_length else cell
        for cell in profile.calibration.cells
    )
    summary = summarize(profile, profile.calibration.model_copy(update={"cells": cells}))
    for table in (report_tables.advice(summary), report_tables.tasks(summary)):
        at = table.head.index("of this cell alone")
        assert table.head[at - 1] == "speedup, of all answers (95%)"
        drafting = [line for line in table.lines if line[at] != report_tables.NONE]
        assert drafting
        for line in drafting:
            assert line[at] == "13.02 (1.30 to 130.00), 2 answers"
            assert not line[at - 1].startswith("13")
    assert BASIS in render(one(profile), "md").decode()


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A whole calibration with two cells left out."""
    return simulated_profile(left_out=[("qa", 3, 8), ("writing", 1, 1)])


@pytest.fixture(scope="module")
def page(profile: Profile) -> str:
    """Its page."""
    return render(one(profile), "html").decode()


def calibration_of(profile: Profile) -> Calibration:
    assert profile.calibration is not None
    return profile.calibration


def test_the_page_has_the_profiles_numbers(profile: Profile, page: str) -> None:
    """The tables hold the very counts, latencies, speeds and speedups of the profile's cells."""
    lines = {tuple(line[:3]): line for line in Tables(page).found["all cells"][1:]}
    assert len(lines) == len(TASKS) * len(LENGTHS) * len(CONCURRENCIES)
    for cell in calibration_of(profile).cells:
        k = str(cell.draft_length or "none")
        line = lines[cell.task.replace("_", " "), k, str(cell.concurrency)]
        assert [int(x) for x in line[3:6]] == [
            cell.num_requests, cell.num_output_tokens, cell.num_steps
        ]  # fmt: skip
        shown = [float(x) for x in re.findall(r"[\d.]+", " ".join(line[8:13]))]
        speedup = cell.speedup or (1.0,)
        known = (*cell.ttft_ms, *cell.tpot_ms, *cell.itl_ms, *cell.tokens_per_s, *speedup)
        assert shown == pytest.approx(known, rel=0.01, abs=0.006)


def test_the_table_per_task_is_that_of_the_cells(profile: Profile, page: str) -> None:
    """Each task's line has the advised length and that cell's numbers."""
    cells = by_key(calibration_of(profile))
    lines = Tables(page).found["each task at the lowest load"][1:]
    assert [line[0] for line in lines] == [task.replace("_", " ") for task in TASKS]
    for task, line in zip(TASKS, lines, strict=True):
        cell = cells[CellKey(task, 0 if line[1] == "none" else int(line[1]), 1)]
        assert float(line[7]) == pytest.approx(cell.tpot_ms.p50, rel=0.01)
        assert float(line[9]) == pytest.approx(cell.tokens_per_s.value, rel=0.01)
        if cell.speedup:
            assert float(line[2].split()[0]) == pytest.approx(cell.speedup.value, abs=0.006)
            assert float(line[5]) == pytest.approx(cell.acceptance_length, abs=0.006)


def test_every_choice_is_in_the_first_table(profile: Profile, page: str) -> None:
    """The first table has the advice of the profile for every task and load."""
    advice = calibration_of(profile).recommendation
    assert advice is not None
    lines = Tables(page).found["Draft length by task and requests at a time"][2:]
    shown = [[name, *cells] for name, *cells in lines]
    for best in advice.best:
        line = next(line for line in shown if line[0].startswith(best.task.replace("_", " ")))
        column = 1 + CONCURRENCIES.index(best.concurrency)
        assert line[column].startswith(str(best.draft_length or "none"))


def test_predicted_cells_are_marked(profile: Profile, page: str) -> None:
    """What was not measured is marked in each format, and never counted as measured."""
    lines = Tables(page).found["all cells"]
    (line,) = [line for line in lines if line[:3] == ["qa", "3", "8"]]
    assert line[-1] == "not measured"
    assert line[-2].startswith("≈ ")
    assert "142 of 144 cells were measured" in page
    rows = list(csv.DictReader(io.StringIO(render(one(profile), "csv").decode())))
    assert len(rows) == 144
    assert sum(row["source"] == "predicted" for row in rows) == 2
    assert "| qa | 3 | 8 |" in (text := render(one(profile), "md").decode())
    assert "≈" in text


def test_a_prediction_does_not_look_at_its_cell(profile: Profile) -> None:
    """Changing a cell's own numbers changes nothing of what the others say of it."""
    cells = by_key(calibration_of(profile))
    key = CellKey("math", 3, 4)
    before = predicted_speedup(cells, key)
    worse = cells[key].model_copy(
        update={"speedup": Interval(9, 9, 9), "accepted_per_position": (0, 0, 0)}
    )
    assert before == predicted_speedup({**cells, key: worse}, key)
    measured = cells[key].speedup
    assert before is not None
    assert measured is not None
    assert before == pytest.approx(measured.value, rel=0.1)  # the simulated world is a product


def test_every_plot_says_its_numbers(page: str) -> None:
    """Each plot has an alternative text with its task's numbers, and unique ids."""
    labels = re.findall(r'<svg class="plot" role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 4 * len(TASKS) + 1
    assert any(
        re.match(r"Speedup by draft length, coding\. K none, speedup .*K 5", x) for x in labels
    )
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_profile_gives_the_same_bytes(profile: Profile) -> None:
    """Nothing of the day or the run is in a report."""
    small = simulated_profile(["qa"], [0, 1], [1, 2])
    for form in ("html", "md", "csv", "json", "png"):
        assert render(one(small), form) == render(one(small), form)


def test_json_has_stable_keys(profile: Profile) -> None:
    """The JSON holds advice, tasks and cells under names that programs can rely on."""
    record = json.loads(render(one(profile), "json"))
    assert record["schema_version"] == 1
    (shown,) = record["profiles"]
    assert {"headline", "tasks", "cells", "recommendation", "crossovers", "fingerprint"} <= set(
        shown
    )
    assert shown["tasks"][0]["task"] == "coding"
    assert len(shown["cells"]) == 144
    assert {cell["source"] for cell in shown["cells"]} == {"measured", "predicted"}


def test_markdown_tables_are_whole(profile: Profile) -> None:
    """Every line of a Markdown table has as many cells as its head."""
    text = render(one(profile), "md").decode()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 6
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_png_is_a_picture_of_every_task(profile: Profile) -> None:
    """The picture has a row of plots for each task."""
    from PIL import Image

    with Image.open(io.BytesIO(render(one(profile), "png"))) as image:
        assert image.width > 1200
        assert image.height > 200 * len(TASKS)


def test_names_are_text_in_every_format() -> None:
    """A task's name or an environment's value is never taken for markup."""
    profile = simulated_profile(["qa"], [0, 1], [1])
    text = calibration_of(profile).model_dump_json().replace('"qa"', '"<b>|_$x$"')
    changed = profile.model_copy(update={"calibration": Calibration.model_validate_json(text)})
    page = render(one(changed), "html").decode()
    assert "<b>|" not in page
    assert "&lt;b&gt;|" in page
    assert r"| &lt;b>\|\_$x$ |" in render(one(changed), "md").decode()
    render(one(changed), "png")


def test_a_replay_is_reported(tmp_path: Path) -> None:
    """The page of a replay has its regret and ratios, for all and by task."""
    record = make_replay()
    (tmp_path / "replay.json").write_text(to_json(record))
    report = read_report(tmp_path / "replay.json")
    lines = Tables(render(report, "html").decode()).found["regret by task"]
    assert [line[0] for line in lines[1:]] == ["all", "coding", "writing"]
    assert lines[1][2] == f"{record['regret']:.1%}"
    assert lines[1][3].startswith(f"{record['over_oracle']['ratio']:.3f}")
    rows = list(csv.DictReader(io.StringIO(render(report, "csv").decode())))
    assert [row["task"] for row in rows] == ["all", "coding", "writing"]
    assert "what the router's choices cost" in render(report, "md").decode()
    assert json.loads(render(report, "json"))["replays"][0]["regret"] == record["regret"]
    assert render(report, "png").startswith(b"\x89PNG")


def test_a_folder_is_one_report(tmp_path: Path, cli: Cli) -> None:
    """Profiles stand side by side by date, replays follow, other JSON files are named."""
    early = simulated_profile(["qa"], [0, 1], [1, 2])
    late = early.model_copy(
        update={
            "fingerprint": "another-rig",
            "calibration": calibration_of(early).model_copy(update={"created": "2026-02-01"}),
        }
    )
    write_profile(tmp_path / "a.json", late)
    write_profile(tmp_path / "b.json", early)
    (tmp_path / "replay.json").write_text(to_json(make_replay()))
    (tmp_path / "other.json").write_text('{"x": 1}')
    result = cli("report", tmp_path, "-o", tmp_path / "report.html")
    assert result.code == 0
    assert "other.json is neither" in result.err
    tables = Tables((tmp_path / "report.html").read_text()).found
    assert [line[0] for line in tables["measurements side by side"][1:]] == ["b.json", "a.json"]
    assert tables["measurements side by side"][2][2] == "another-rig"
    assert "regret by task" in tables


def test_what_can_not_be_reported_is_said(tmp_path: Path, cli: Cli) -> None:
    """An empty folder, a profile without a calibration and a broken replay end with 2."""
    assert "holds no report" in cli("report", tmp_path).err
    write_profile(tmp_path / "p.json", Profile())
    result = cli("report", tmp_path / "p.json")
    assert (result.code, "trt-mtp calibrate" in result.err) == (2, True)
    (tmp_path / "r.json").write_text(json.dumps(make_replay() | {"regret": "much"}))
    assert "r.json: regret" in cli("report", tmp_path / "r.json").err
    empty = calibration_of(simulated_profile(["qa"], [0], [1])).model_copy(update={"cells": ()})
    with pytest.raises(InputError, match="no cell to draw"):
        render(one(Profile(calibration=empty)), "png")


def test_a_report_never_replaces_its_source(tmp_path: Path, cli: Cli) -> None:
    """Writing a profile's JSON report onto the profile is refused."""
    profile = tmp_path / "p.json"
    write_profile(profile, simulated_profile(["qa"], [0], [1]))
    before = profile.read_bytes()
    result = cli("report", profile, "-o", profile)
    assert (result.code, "name another" in result.err) == (2, True)
    assert profile.read_bytes() == before


def test_the_format_follows_the_file(tmp_path: Path, cli: Cli) -> None:
    """The ending of the file names the format, --format overrules it, stdout has html."""
    write_profile(tmp_path / "p.json", simulated_profile(["qa"], [0], [1]))
    cli("report", tmp_path / "p.json", "-o", tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().startswith("profile,")
    cli("report", tmp_path / "p.json", "-o", tmp_path / "r.csv", "--format", "md")
    assert (tmp_path / "r.csv").read_text().startswith("# Which draft length to use")
    assert cli("report", tmp_path / "p.json").out.startswith("<!DOCTYPE html>")


def test_a_cell_that_nothing_is_near_is_told_by_the_profiles_table() -> None:
    """A load at which only no speculation was measured is predicted from R in the profile."""
    left_out = [("qa", 1, 4), ("qa", 3, 4)]
    profile = simulated_profile(["qa"], [0, 1, 3], [1, 4], left_out=left_out)
    summary = summary_of(profile)
    guesses = {row.key: row.predicted for row in summary.rows if row.cell is None}
    assert set(guesses) == {CellKey(*key) for key in left_out}
    measured = summary_of(simulated_profile(["qa"], [0, 1, 3], [1, 4]))
    for key, guess in guesses.items():
        row = measured.row(key)
        assert row is not None
        assert guess == pytest.approx(row.speedup, rel=0.1)


def test_a_cell_without_a_pair_is_told_by_the_others(profile: Profile) -> None:
    """Answers that could not be compared leave their counts, and the speedup is a prediction."""
    changed = [
        cell.model_copy(update={"speedup": None})
        if (cell.task, cell.draft_length, cell.concurrency) == ("math", 3, 4)
        else cell
        for cell in calibration_of(profile).cells
    ]
    calibration = calibration_of(profile).model_copy(update={"cells": tuple(changed)})
    row = summarize(profile, calibration).row(CellKey("math", 3, 4))
    assert row is not None
    assert row.is_predicted
    assert row.cell is not None
    assert row.speedup == row.predicted
