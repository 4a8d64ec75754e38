"""What people read on a terminal: nothing is cut in the middle of a word, at 80 columns or more."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calibration_fixtures import simulated_profile
from tests.conftest import CliResult
from tests.pseudo_terminal import on_terminal
from trt_mtp.controller.profile import write_profile
from trt_mtp.terminal import NARROWEST, folded

WORDS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=60)


@given(st.lists(WORDS, min_size=1), st.integers(1, 200))
def test_folding_keeps_the_words(words: list[str], width: int) -> None:
    """Lines are as wide as asked for, or one word that is wider; nothing is lost."""
    text = " ".join(words)
    lines = folded(text, width).split("\n")
    assert " ".join(lines).split() == words
    for line in lines:
        assert len(line) <= max(width, NARROWEST) or len(line.split()) == 1
    assert folded(text, None) == text


@pytest.mark.parametrize("columns", [80, 120])
def test_an_error_is_folded_on_a_terminal_only(columns: int, cli: Callable[..., CliResult]) -> None:
    """In a pipe it is one line, for programs that read it."""
    command = ("ask", "hello", "--url", "127.0.0.1:1")
    code, lines = on_terminal(columns, *command)
    shown = [line for line in lines if line]
    assert code == 1
    assert len(shown) > 1
    assert max(map(len, shown)) <= columns
    assert " ".join(line.strip() for line in shown) == cli(*command).err.strip()


def test_a_profile_fits_80_columns(tmp_path: Path, cli: Callable[..., CliResult]) -> None:
    """However many loads were measured; --wide has where each length loses, in one table."""
    file = tmp_path / "p.json"
    write_profile(file, simulated_profile())
    code, lines = on_terminal(80, "profile", "show", str(file))
    assert code == 0
    assert max(map(len, lines)) <= 80
    plain, wide = cli("profile", "show", file).out, cli("profile", "show", file, "--wide").out
    assert "loses from\n" not in plain
    assert "loses from\n" in wide
