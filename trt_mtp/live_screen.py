"""A live screen on a terminal: each one is drawn over the one before."""

import click

from trt_mtp.printable import printable

CLEAR = "\x1b[H\x1b[J"  # the cursor to the top left, and nothing after it


def draw(text: str, *, err: bool = False) -> None:
    """Show `text` alone on the terminal that stdout is, or stderr."""
    click.echo(CLEAR + printable(text), err=err)
