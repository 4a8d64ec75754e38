"""The journal of a calibration: a JSON line for each batch, on disk before the next one starts."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, astuple
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.results import Arm, Block, Results
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import open_shared, read_bounded, sync_folder

SCHEMA_VERSION = 1


class Journal:
    """An append-only file; opening it drops a line that a crash cut off."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal of a run with `settings`, or begin it.

        Raises InputError if it belongs to other settings or is no journal, and TrtMtpError
        where it can't be written.
        """
        self.path = path
        self.results = Results()
        self.open_block: Block | None = None  # of which arms are missing
        whole = self._read(settings) if path.exists() else b""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: what could not be written must not come later
            mode = "r+" if path.exists() else "x"
            self._file = FileIO(path, mode, opener=open_shared)
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write({"schema_version": SCHEMA_VERSION, "settings": dict(settings)})
                sync_folder(path.parent)
        except OSError as error:
            raise TrtMtpError(f"can't write {path}: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def begin(self, block: Block) -> None:
        """Record the next block."""
        self._write({"block": asdict(block)})
        self.open_block = block

    def add(self, arm: Arm) -> None:
        """Record an arm of the open block."""
        answers = [astuple(answer) for answer in arm.answers]
        self._write({"draft_length": arm.draft_length, "wall_s": arm.wall_s, "answers": answers})
        self.results.add(arm)

    def _write(self, value: Any) -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        start = self._file.tell()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise TrtMtpError(
                f"can't write {self.path}: {error.strerror or error}; what was measured until "
                f"then is in it: make room and run the same command again"
            ) from None

    def _read(self, settings: Mapping[str, Any]) -> bytes:
        """Load the file's content; returns it without a line that was cut off."""
        content = read_bounded(self.path)
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if number == 1:
                    self._check(value["settings"], settings)
                else:
                    self._take(value)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.path}, line {number} is not of a calibration's journal ({error!r}); "
                    f"remove the file to begin again"
                ) from None
        return b"".join(lines)

    def _check(self, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        expected = json.loads(json.dumps(dict(settings)))
        for key in sorted({*recorded, *expected}):
            if recorded.get(key) != expected.get(key):
                raise InputError(
                    f"{self.path} is of a run with {key} {recorded.get(key)!r:.60}, not "
                    f"{expected.get(key)!r:.60}; remove it to begin again, or name another --output"
                )

    def _take(self, value: Mapping[str, Any]) -> None:
        if "block" in value:
            fields = value["block"]
            tuples = {key: tuple(fields[key]) for key in ("draft_lengths", "prompts")}
            self.open_block = Block(**{**fields, **tuples})
            return
        if self.open_block is None:
            raise ValueError("answers without a block")
        answers = tuple(_answer(fields) for fields in value["answers"])
        if len(answers) != len(self.open_block.prompts):
            raise ValueError("as many answers as prompts were expected")
        self.results.add(Arm(self.open_block, value["draft_length"], answers, value["wall_s"]))


def _answer(fields: list[Any]) -> Answer:
    values: list[Any] = [tuple(v) if isinstance(v, list) else v for v in fields]
    return Answer(*values)
