"""What others say is shown, and obeyed by no terminal and no reader of logs."""

import logging

import pytest

from trt_mtp import live_screen
from trt_mtp.controller.gateway.log_lines import begin_log
from trt_mtp.printable import one_line, printable

ATTACKS = (
    "\x1b[2J\x1b[1;1H",  # clears the screen
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # sets the clipboard
    "\x9b31m",  # the same as ESC [ in one character
    "good\rbad",  # writes over what was there
    "\u202egpj.exe",  # the other way round
    "a\x08b",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_what_a_terminal_would_obey_is_written_out(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a live screen, too, which has a sequence of its own."""
    assert printable(text).isprintable()
    assert printable(f"|{text}|") == f"|{printable(text)}|"
    live_screen.draw(text)
    shown = capsys.readouterr().out
    assert shown.removeprefix(live_screen.CLEAR).removesuffix("\n").isprintable()


def test_honest_text_stays() -> None:
    """Tabs, line breaks of all systems, and every script."""
    honest = "a\tb\nc\r\nd \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f680"
    assert printable(honest) == honest
    assert "\n" not in one_line(honest)


def test_nobody_writes_a_line_of_their_own_into_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server says is on the line of what the gateway says of it."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    begin_log()
    logging.getLogger("x").info("k3 failed: %s", "down\n2026-01-01 INFO all is well\x1b[A")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO k3 failed: down\\n2026-01-01 INFO all is well\\x1b[A")
