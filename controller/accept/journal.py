"""The journal of an acceptance: a JSON line for each step that ended, and for what inputs."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Self

from trt_mtp.controller.accept.step import Outcome
from trt_mtp.errors import InputError
from trt_mtp.json_lines import JsonLines

SCHEMA_VERSION = 1
KIND = "trt-mtp accept"
NAME = "an acceptance's journal"
FIELDS = {item.name for item in fields(Outcome)}


class Journal:
    """An append-only file that only its user can read: reasons in it may name paths."""

    def __init__(self, path: Path) -> None:
        """Read the journal, or begin it; raises what JsonLines does."""
        self._passed: dict[tuple[str, str], Outcome] = {}
        self._path = path
        head = {"schema_version": SCHEMA_VERSION, "kind": KIND}
        self._lines = JsonLines(path, head, self._check, self._take, name=NAME, private=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        """Let another run have it."""
        self._lines.close()

    def passed(self, step: str, fingerprint: str) -> Outcome | None:
        """The outcome of a step that passed with inputs of that fingerprint before."""
        return self._passed.get((step, fingerprint))

    def add(self, outcome: Outcome, fingerprint: str) -> None:
        """Keep how a step ended, on disk before this returns."""
        self._lines.append({"fingerprint": fingerprint, **asdict(outcome)})

    def _check(self, head: Any) -> None:
        if head["kind"] != KIND or head["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{self._path} is of {head['kind']!r:.40}, version {head['schema_version']!r:.20}, "
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
