"""The journal of an acceptance: a JSON line for each step that ended, and for what inputs."""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, fields, replace
from io import FileIO
from pathlib import Path
from typing import Any, Self

from trt_mtp.controller.accept.step import Outcome
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import PRIVATE, open_shared, read_bounded, sync_folder

SCHEMA_VERSION = 1
KIND = "trt-mtp accept"
FIELDS = {item.name for item in fields(Outcome)}


class Journal:
    """An append-only file that only its user can read: reasons in it may name paths."""

    def __init__(self, path: Path) -> None:
        """Read the journal, or begin it.

        Raises InputError if the file is none, or one of another version; TrtMtpError where it can't
        be written.
        """
        self.path = path
        self._passed: dict[tuple[str, str], Outcome] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: what could not be written must not come later
            self._file = FileIO(path, "a", opener=open_shared)
        except OSError as error:
            raise TrtMtpError(f"can't write {path}: {error.strerror or error}") from None
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another `trt-mtp accept` is running in {self.path.parent}; wait for its end, or "
                "name another --output"
            ) from None
        whole = self._read()
        self._file.truncate(len(whole))  # without a line that a crash cut off
        if not whole:
            self.path.chmod(PRIVATE)
            self._write({"schema_version": SCHEMA_VERSION, "kind": KIND})
            sync_folder(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        """Let another run have it."""
        self._file.close()

    def passed(self, step: str, fingerprint: str) -> Outcome | None:
        """The outcome of a step that passed with inputs of that fingerprint before."""
        return self._passed.get((step, fingerprint))

    def add(self, outcome: Outcome, fingerprint: str) -> None:
        """Keep how a step ended, on disk before this returns."""
        self._write({"fingerprint": fingerprint, **asdict(outcome)})

    def _write(self, value: Any) -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise TrtMtpError(f"can't write {self.path}: {error.strerror or error}") from None

    def _read(self) -> bytes:
        content = read_bounded(self.path)
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if number == 1:
                    self._check(value)
                else:
                    self._take(value)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.path}, line {number} is not of an acceptance's journal "
                    f"({error!r:.80}); remove the file to begin again"
                ) from None
        return b"".join(lines)

    def _check(self, head: Any) -> None:
        if head["kind"] != KIND or head["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{self.path} is of {head['kind']!r:.40}, version {head['schema_version']!r:.20}, "
                f"expected {KIND!r}, version {SCHEMA_VERSION}; remove it, or name another --output"
            )

    def _take(self, value: dict[str, Any]) -> None:
        fingerprint = value.pop("fingerprint")
        if set(value) != FIELDS or not isinstance(fingerprint, str):
            raise ValueError("other keys than expected")
        outcome = Outcome(**{**value, "phrases": tuple(value["phrases"])})
        key = (outcome.step, fingerprint)
        if outcome.status == "passed":
            self._passed[key] = replace(outcome, is_resumed=True)
        else:
            self._passed.pop(key, None)
