"""The journal: what was measured survives a kill at any byte, and other settings are refused."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calibrate_world import World
from trt_mtp.controller.calibrate.journal import Journal
from trt_mtp.controller.calibrate.plan import next_block
from trt_mtp.controller.calibrate.results import Block
from trt_mtp.errors import InputError, TrtMtpError

SETTINGS = {"seed": 0, "tasks": ["qa"]}
WORLD = World({"qa": 0.8}, {1: {1: 1.2}, 3: {1: 1.6}})


def begin_block(journal: Journal) -> Block:
    """The block that comes next, noted."""
    block = next_block(WORLD.settings(all_cells=True), journal.results)
    assert block is not None
    journal.begin(block)
    return block


def measure(path: Path, num_arms: int) -> Journal:
    """A journal, closed, with some arms of the plan's blocks."""
    with Journal(path, SETTINGS) as journal:
        while len(journal.results.arms) < num_arms:
            block = begin_block(journal)
            for length in block.draft_lengths[: num_arms - len(journal.results.arms)]:
                journal.add(WORLD.arm(block, length))
    return journal


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Journal]:
    """A folder to work in, a journal's bytes, and what is in it."""
    folder = tmp_path_factory.mktemp("journal")
    journal = measure(folder / "whole", 5)
    return folder, (folder / "whole").read_bytes(), journal


def test_it_gives_back_what_was_added(written: tuple[Path, bytes, Journal]) -> None:
    """Opened again, it has the same arms and the same open block."""
    folder, _, journal = written
    with Journal(folder / "whole", SETTINGS) as again:
        assert again.results.arms == journal.results.arms
        assert again.results.speedups == journal.results.speedups
        assert again.open_block == journal.open_block


@given(st.data())
def test_a_cut_at_any_byte_loses_the_last_line_only(
    written: tuple[Path, bytes, Journal], data: st.DataObject
) -> None:
    """Whatever a crash left of the file, the whole lines count and can be written on."""
    folder, content, journal = written
    cut = data.draw(st.integers(0, len(content)))
    file = folder / "cut"
    file.write_bytes(content[:cut])
    with Journal(file, SETTINGS) as again:
        found = again.results.arms
        assert found == journal.results.arms[: len(found)]
        whole = content[:cut].count(b'"answers"') if content[:cut].endswith(b"\n") else None
        assert whole is None or len(found) == whole
    assert file.read_bytes() == content[: len(file.read_bytes())] or cut < content.find(b"\n")


def test_other_settings_are_refused_by_name(written: tuple[Path, bytes, Journal]) -> None:
    """A journal of another run is not mixed with this one; the difference is named."""
    with pytest.raises(InputError, match="a run with seed 0, not 1; remove it to begin again"):
        Journal(written[0] / "whole", {**SETTINGS, "seed": 1})


@pytest.mark.parametrize("line", ["[]", "{}", '{"block": {"task": 1}}', "nonsense"])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, line: str) -> None:
    """Something else under that name is left alone, and the line is named."""
    measure(tmp_path / "j", 1)
    with (tmp_path / "j").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"line \d is not of a calibration's journal"):
        Journal(tmp_path / "j", SETTINGS)


@pytest.mark.parametrize("content", ["nonsense", '{"schema_version":7', "\0"])
def test_a_file_without_a_line_that_is_no_journal_is_left_alone(
    tmp_path: Path, content: str
) -> None:
    """What a crash leaves of a journal's first line is its beginning, and nothing else."""
    (tmp_path / "j").write_text(content)
    with pytest.raises(InputError, match="is not a calibration's journal; remove the file"):
        Journal(tmp_path / "j", SETTINGS)
    assert (tmp_path / "j").read_text() == content


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path) -> None:
    """A batch that can't be written is an error that says so; those before it stay readable."""
    measure(tmp_path / "j", 3)
    with Journal(tmp_path / "j", SETTINGS) as journal:
        block = begin_block(journal)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (tmp_path / "j").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        try:
            with pytest.raises(TrtMtpError, match=r"can't write .*: make room and run"):
                journal.add(WORLD.arm(block, 0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(tmp_path / "j", SETTINGS) as again:
        assert len(again.results.arms) == 3


def test_two_at_once(tmp_path: Path) -> None:
    """A second run of the same journal is refused, and the first one goes on."""
    with Journal(tmp_path / "j", SETTINGS) as journal:
        with pytest.raises(InputError, match="another `trt-mtp` is writing"):
            Journal(tmp_path / "j", SETTINGS)
        block = begin_block(journal)
    with Journal(tmp_path / "j", SETTINGS) as again:
        assert again.open_block == block
