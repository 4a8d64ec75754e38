"""The documents say what the code says."""

import ast
import re
from pathlib import Path

import pytest

from trt_mtp.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "trt_mtp", "build", "serve", "serve/engine", "serve/model", "controller", "controller/gateway",
    "controller/measure", "controller/report", "controller/rollout", "controller/simulate",
)  # fmt: skip


def summary(file: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


@pytest.mark.parametrize("part", PARTS)
def test_structures_lists_every_module(part: str) -> None:
    """docs/structures.md names each module of a part with the first line of its docstring."""
    page = (ROOT / "docs/structures.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+\.py)` \| (.+) \|$", page, re.MULTILINE))
    for file in (ROOT / part).glob("*.py"):
        assert summary(file), f"{part}/{file.name} has no docstring"
        assert f"| `{file.name}` | {summary(file)} |" in page, f"{part}/{file.name}"
    assert listed


def test_links_lead_somewhere() -> None:
    """Every relative link in the Markdown pages is a file of the repository."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_only_commands_that_exist() -> None:
    """Each `trt-mtp COMMAND` in the README and the docs is in the command table."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for name in re.findall(r"`trt-mtp ([a-z]+)", page.read_text("utf-8")):
            assert name in COMMANDS, f"{page.name}: trt-mtp {name}"
