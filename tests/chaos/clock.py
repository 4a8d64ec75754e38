"""A wall clock that can be set for one process: libfaketime, where it is installed."""

from pathlib import Path

LIBRARY = "usr/lib/*/faketime/libfaketimeMT.so.1"  # of Debian's package libfaketime


class Clock:
    """The wall clock of processes that are started with `environment`; time() alone is changed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.jump(0)
        self._library = next(Path("/").glob(LIBRARY), None)

    @property
    def can_jump(self) -> bool:
        """False where libfaketime is missing."""
        return self._library is not None

    def environment(self) -> dict[str, str]:
        """What a process needs to see this clock."""
        if self._library is None:
            return {}
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until it reads the file again
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a wall clock that is set jumps, this one doesn't
            "FAKETIME_DONT_RESET": "1",
        }

    def jump(self, seconds: int) -> None:
        """Set the clock `seconds` ahead of the true time; negative: behind."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}s\n")
        temporary.replace(self._file)
