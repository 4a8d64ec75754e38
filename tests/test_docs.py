"""The documents say what the code says."""

import re
from pathlib import Path

import pytest

from tests.module_table import HEADING, PAGE, ROOMS, summary, table
from tools.reference import PAGES
from trt_mtp.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def test_structures_has_the_module_table() -> None:
    """docs/structures.md ends with each module and the first line of its docstring."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(HEADING)[1:] == (HEADING, table().removeprefix(HEADING)), (
        "run `python -m tests.module_table`"
    )


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_the_reference_is_that_of_the_code(file: Path) -> None:
    """Files of docs/ that are made from the code say what it says."""
    assert file.read_text("utf-8") == PAGES[file](), "run `python -m tools.reference`"


def test_every_module_is_in_a_room_and_has_a_docstring() -> None:
    """No folder of source is left out of the table."""
    for part in ("trt_mtp", "build", "serve", "controller", "tools"):
        for file in (ROOT / part).rglob("*.py"):
            assert str(file.parent.relative_to(ROOT)) in ROOMS
            assert summary(file), f"{file} has no docstring"


def test_links_lead_somewhere() -> None:
    """Every relative link in the Markdown pages is a file of the repository."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_only_commands_that_exist() -> None:
    """Each `trt-mtp COMMAND` in the README and the docs is in the command table."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for name in re.findall(r"`trt-mtp ([a-z]+)", page.read_text("utf-8")):
            assert name in COMMANDS, f"{page.name}: trt-mtp {name}"
