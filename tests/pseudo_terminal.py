"""A command on a terminal of some columns, and what a person then reads."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.programs import within

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(columns: int, *arguments: str) -> tuple[int, list[str]]:
    """The exit code of `trt-mtp`, and the lines of its stdout and stderr on one terminal.

    Of what a bar drew over, the last state counts.
    """
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "trt_mtp", *arguments],
        stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    with within(process):
        shown = _read(ours)
    code = process.wait()
    os.close(ours)
    text = CONTROL.sub("", shown).replace("\r\n", "\n")
    return code, [line.split("\r")[-1].rstrip() for line in text.split("\n")]


def _read(terminal: int) -> str:
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody has the other end open
            part = b""
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)
