"""Calibrated profiles and replays, read from where a user points to, and written as one report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trt_mtp.controller.calibration import Calibration
from trt_mtp.controller.profile import Profile, parse_profile
from trt_mtp.controller.report.replay import ReplayReport, is_replay, parse_replay
from trt_mtp.controller.report.summary import Summary, summarize
from trt_mtp.controller.report.wishes import Wishes
from trt_mtp.errors import InputError
from trt_mtp.extras import require_extras
from trt_mtp.files import read_json

DRAWN = ("html", "png")  # the forms with plots

Say = Callable[[str], None]


class Calibrated(NamedTuple):
    """A profile that holds a calibration."""

    name: str  # of its file
    profile: Profile
    summary: Summary

    @property
    def calibration(self) -> Calibration:
        """What was measured."""
        return self.summary.calibration


class Replay(NamedTuple):
    """A replay of a decision log."""

    name: str
    replay: ReplayReport


class Report(NamedTuple):
    """Everything that one report shows; profiles by their date."""

    profiles: tuple[Calibrated, ...]
    replays: tuple[Replay, ...]
    wishes: Wishes = Wishes()


def read_report(path: Path, say: Say = lambda line: None) -> Report:
    """The report of a profile, a replay, or a folder of them.

    `say` is told of JSON files in a folder that are neither. Raises InputError if nothing can be
    reported.
    """
    if not path.is_dir():
        return _report([_read(path, read_json(path))])
    read = []
    for file in sorted(path.glob("*.json")):
        value = read_json(file)
        if is_replay(value) or _is_profile(value):
            read.append(_read(file, value))
        else:
            say(f"{file} is neither a calibrated profile nor a replay, and is left out")
    if not read:
        raise InputError(
            f"{path} holds no report: expected the output of `trt-mtp calibrate` or of "
            "`trt-mtp replay --json` as *.json"
        )
    return _report(read)


def _is_profile(value: Any) -> bool:
    return isinstance(value, dict) and value.get("calibration") is not None


def _read(path: Path, value: Any) -> Calibrated | Replay:
    if is_replay(value):
        return Replay(path.name, parse_replay(value, str(path)))
    return calibrated(parse_profile(value, str(path)), path.name)


def calibrated(profile: Profile, name: str) -> Calibrated:
    """A profile for a report; raises InputError if it holds no calibration."""
    if profile.calibration is None:
        raise InputError(f"{name} holds no calibration: make one with `trt-mtp calibrate`")
    return Calibrated(name, profile, summarize(profile, profile.calibration))


def _report(inputs: list[Calibrated | Replay]) -> Report:
    profiles = [one for one in inputs if isinstance(one, Calibrated)]
    profiles.sort(key=lambda one: (one.calibration.created, one.name))
    return Report(tuple(profiles), tuple(one for one in inputs if isinstance(one, Replay)))


def render(report: Report, form: str) -> bytes:
    """The report as html, md, csv, json or png; the same report gives the same bytes.

    Raises InputError if what draws html and png isn't installed.
    """
    if form in DRAWN:
        require_extras(f"a report as {form}", "report")
    if form == "html":
        from trt_mtp.controller.report.html import html

        return html(report).encode()
    if form == "png":
        from trt_mtp.controller.report.html import picture

        return picture(report)
    from trt_mtp.controller.report.data import to_csv, to_json_value, to_markdown

    if form == "json":
        return (json.dumps(to_json_value(report), indent=2, ensure_ascii=False) + "\n").encode()
    return (to_csv(report) if form == "csv" else to_markdown(report)).encode()
