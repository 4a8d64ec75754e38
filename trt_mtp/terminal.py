"""Text for people: on a terminal, lines end between words at its width."""

import os
import sys
import textwrap
from typing import TextIO

import click

from trt_mtp.printable import printable

INDENT = "  "  # of what a long line goes on with
NARROWEST = 40  # columns; below, the terminal itself wraps


def folded(text: str, width: int | None) -> str:
    """`text`, printable, with its long lines folded at spaces if there is a `width`.

    Words are never cut, so that an address or a command can be copied whole.

    >>> print(folded("gateway at 127.0.0.1:8001, OpenAI's API at http://127.0.0.1:8000/v1", 40))
    gateway at 127.0.0.1:8001, OpenAI's API
      at http://127.0.0.1:8000/v1
    """
    text = printable(text)
    if width is None:
        return text
    return "\n".join(_folded_line(line, max(width, NARROWEST)) for line in text.split("\n"))


def _folded_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    start = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.lstrip(), width, initial_indent=start, subsequent_indent=start + INDENT,
        break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False,
    )  # fmt: skip


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal that `stream` is; None if it is not one, or tells none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def fitted(text: str, *, err: bool = False) -> str:
    """`text` folded for stdout, or stderr; a file or a pipe gets every line whole."""
    return folded(text, width_of(sys.stderr if err else sys.stdout))


def say(text: str, *, err: bool = False) -> None:
    """Print prose on stdout, or stderr, fitted to it."""
    click.echo(fitted(text, err=err), err=err)
