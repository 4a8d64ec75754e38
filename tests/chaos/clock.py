"""A wall clock that jumps for the processes that are started with it: Python's time.time."""

import os
from pathlib import Path

# Python imports a module of this name before anything else. The monotonic clock doesn't jump when
# the wall clock is set, and here it doesn't either.
SITE = """
import time

_true = time.time


def _shifted():
    with open({file!r}) as file:
        return _true() + int(file.read())


time.time = _shifted
"""


class Clock:
    """The wall clock of processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._site = folder / "site"
        self._site.mkdir(parents=True)
        (self._site / "sitecustomize.py").write_text(SITE.format(file=str(self._file)))
        self.jump(0)

    def environment(self) -> dict[str, str]:
        """What a process needs to see this clock."""
        others = os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(self._site), others)))}

    def jump(self, seconds: int) -> None:
        """Set the clock `seconds` ahead of the true time; negative: behind."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(str(seconds))
        temporary.replace(self._file)
