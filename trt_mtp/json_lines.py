"""An append-only file of JSON values, a line each, on disk before the next one is begun."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Self

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import folder_for, open_private, open_shared, read_bounded, sync_folder

Take = Callable[[Any], None]
WRONG = (ValueError, KeyError, TypeError, AttributeError)  # of a value that isn't as it should be


class JsonLines:
    """The lines that one process at a time adds to; the first one, the head, says what they are."""

    def __init__(
        self, path: Path, head: Any, check: Take, take: Take, *, name: str, private: bool = False
    ) -> None:
        """Read the file, or begin it with `head`; a line that a crash cut off is dropped.

        `check` gets the head of a file that is there, `take` each further value; what they raise of
        WRONG makes the file none of `name`. Raises InputError for such a file, and for one that
        another process writes; TrtMtpError where it can't be written.
        """
        self.path = path
        self._name = name
        try:
            with folder_for(path):
                # unbuffered: what could not be written must not come later
                self._file = FileIO(path, "a", opener=open_private if private else open_shared)
        except OSError as error:
            raise TrtMtpError(f"can't write {path}: {error.strerror or error}") from None
        try:
            self._begin(head, check, take)
        except BaseException:
            self.close()
            raise

    def _begin(self, head: Any, check: Take, take: Take) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another `trt-mtp` is writing {self.path}; wait for its end, or name another "
                "--output"
            ) from None
        except OSError as error:
            raise TrtMtpError(f"can't lock {self.path}: {error.strerror or error}") from None
        whole = self._read(check, take, _line(head))
        self._file.truncate(len(whole))
        if not whole:
            self.append(head)
            sync_folder(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, value: Any, hint: str = "") -> None:
        """Add a line, whole or not at all; raises TrtMtpError, which ends with `hint`."""
        start = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(_line(value))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise TrtMtpError(f"can't write {self.path}: {error.strerror or error}{hint}") from None

    def _read(self, check: Take, take: Take, head: bytes) -> bytes:
        content = read_bounded(self.path)
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        if not lines and not head.startswith(content):  # it may be anything
            raise InputError(f"{self.path} is not {self._name}; remove the file to begin again")
        for number, line in enumerate(lines, 1):
            try:
                (check if number == 1 else take)(json.loads(line))
            except WRONG as error:
                raise InputError(
                    f"{self.path}, line {number} is not of {self._name} ({error!r:.80}); remove "
                    f"the file to begin again"
                ) from None
        return b"".join(lines)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
