"""The journal of a calibration: a JSON line for each batch, on disk before the next one starts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Self

from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.results import Arm, Block, Results
from trt_mtp.errors import InputError
from trt_mtp.json_lines import JsonLines

SCHEMA_VERSION = 1
NAME = "a calibration's journal"
KEPT = "; what was measured until then is in it: make room and run the same command again"


class Journal:
    """An append-only file; opening it drops a line that a crash cut off."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal of a run with `settings`, or begin it.

        Raises InputError if it belongs to other settings or is no journal, and TrtMtpError
        where it can't be written.
        """
        self._path = path
        self._expected = json.loads(json.dumps(dict(settings)))
        self.results = Results()
        self.open_block: Block | None = None  # of which arms are missing
        head = {"schema_version": SCHEMA_VERSION, "settings": self._expected}
        self._lines = JsonLines(path, head, self._check, self._take, name=NAME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._lines.close()

    def begin(self, block: Block) -> None:
        """Record the next block."""
        self._lines.append({"block": asdict(block)}, KEPT)
        self.open_block = block

    def add(self, arm: Arm) -> None:
        """Record an arm of the open block."""
        answers = [astuple(answer) for answer in arm.answers]
        line = {"draft_length": arm.draft_length, "wall_s": arm.wall_s, "answers": answers}
        self._lines.append(line, KEPT)
        self.results.add(arm)

    def _check(self, head: Mapping[str, Any]) -> None:
        recorded, expected = head["settings"], self._expected
        for key in sorted({*recorded, *expected}):
            if recorded.get(key) != expected.get(key):
                raise InputError(
                    f"{self._path} is of a run with {key} {recorded.get(key)!r:.60}, not "
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
