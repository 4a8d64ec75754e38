"""One compact line per request: what was decided and what came of it.

Prompts are in it only where that was asked for, and then as far as a request's features hold them.
"""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from io import FileIO, TextIOWrapper
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import folder_for, open_private, open_regular

MAX_BYTES = 64 * 1024 * 1024  # of one file, then it is rotated
MAX_LINE_BYTES = 1 << 22
_BEGIN = b'{"decision":{'  # of each line
MAX_FILES = 5  # the current one and .1 (newest) to .4


class LogRecord(NamedTuple):
    """A decision, its outcome, and the prompt where logging it was asked for."""

    decision: Decision
    outcome: Outcome
    prompt: str | None = None


class DecisionLog:
    """Appends records to a file and rotates it. One thread at a time.

    Others may rotate it, too: a file that was moved or removed is left for one of its name.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES):
        self._path, self._max_bytes, self._max_files = path, max_bytes, max(max_files, 1)
        self._file = self._open()

    def append(self, decision: Decision, outcome: Outcome, prompt: str | None = None) -> None:
        """Write one record; raises TrtMtpError when the disk is full or the file is gone."""
        record: dict[str, Any] = {"decision": decision.to_json(), "outcome": asdict(outcome)}
        if prompt is not None:
            record["prompt"] = prompt
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
        try:
            if self._is_moved():
                self._file.close()
                self._file = self._open()
            size = self._file.seek(0, os.SEEK_END)  # a line that was cut off moved the position
            if size and size + len(line) > self._max_bytes:
                self._rotate()
                size = 0
            if self._file.write(line) != len(line):
                self._file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrtMtpError(f"can't write {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_moved(self) -> bool:
        if self._file.closed:  # it could not be opened again
            return True
        opened = os.fstat(self._file.fileno())
        try:
            named = self._path.stat()
        except OSError:
            return True
        # a pipe or device under the name is not opened in place of a file
        return S_ISREG(named.st_mode) and not os.path.samestat(opened, named)

    def _open(self) -> FileIO:
        try:
            with folder_for(self._path):
                # unbuffered: a kill loses no whole line
                file = FileIO(self._path, "a+", opener=open_private)
            try:
                _cut_broken_line(file)
            except OSError:
                file.close()
                raise
            return file
        except OSError as error:
            raise TrtMtpError(f"can't open {self._path}: {error.strerror or error}") from error

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._max_files - 1, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        if self._max_files == 1:
            self._path.unlink(missing_ok=True)
        self._file = self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _cut_broken_line(file: FileIO) -> None:
    """Remove a last line without an end, which a kill left, so that the next one is readable.

    Raises OSError for a file whose last line is not one of ours: it may be anything.
    """
    if not file.seekable() or (size := file.seek(0, os.SEEK_END)) == 0:
        return
    start = max(size - MAX_LINE_BYTES, 0)
    file.seek(start)
    end = file.readall()
    begun = end.rfind(b"\n") + 1
    line = end[begun:]
    is_own = line.startswith(_BEGIN) if len(line) >= len(_BEGIN) else _BEGIN.startswith(line)
    if not is_own or (start and not begun):
        raise OSError(errno.EINVAL, "it is not a decision log")
    if line:
        file.truncate(start + begun)


def prompt_text(features: RequestFeatures) -> str:
    """A prompt as far as its features hold it: whole, or both ends with `…` between them."""
    overlap = len(features.head) + len(features.tail) - features.num_chars
    if overlap < 0:
        return f"{features.head}\n…\n{features.tail}"
    return features.head + features.tail[overlap:]


def log_files(path: Path) -> list[Path]:
    """A log and what was rotated out of it, newest first."""
    rotated = [path.with_name(f"{path.name}.{number}") for number in range(1, MAX_FILES)]
    return [path, *(file for file in rotated if file.exists())]


def read_log(path: Path) -> Iterator[LogRecord]:
    """The records of a log file, in order.

    Raises InputError for a line that is none; a last line that a kill cut short is left out.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), ""), 1):
                if not line.endswith("\n"):
                    if len(line) == MAX_LINE_BYTES:
                        raise InputError(f"{path}, line {number} is too long for a decision record")
                    return
                yield parse_record(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} can't be read: it is not UTF-8 text") from None


def parse_record(line: str, where: str) -> LogRecord:
    """The record in a line of a log; raises InputError, which begins with `where`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not {"decision", "outcome"} <= value.keys():
        raise InputError(f"{where} is not a decision record")
    try:
        outcome = _outcome_reader().validate_python(value["outcome"])
        decision = Decision.from_json(value["decision"])
    except ValidationError as error:
        problem = first_problem(error, Outcome.__slots__)
        raise InputError(f"{where} is not a decision record: outcome.{problem}") from None
    except InputError as error:
        raise InputError(f"{where} is {error}") from None
    prompt = value.get("prompt")
    return LogRecord(decision, outcome, prompt if isinstance(prompt, str) else None)


@cache
def _outcome_reader() -> TypeAdapter[Outcome]:
    return TypeAdapter(Outcome)
