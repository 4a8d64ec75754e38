"""Several profiles side by side, by date and fingerprint."""

from collections.abc import Sequence

from trt_mtp.controller.report.report import Calibrated
from trt_mtp.controller.report.tables import NONE, Table, length
from trt_mtp.controller.report.text import ratio


def comparison(profiles: Sequence[Calibrated]) -> Table:
    """A line a profile: when and on what it was measured, and its advice at the lowest load."""
    tasks = dict.fromkeys(row.task for one in profiles for row in one.summary.tasks)
    head = ("file", "measured", "fingerprint", "one length for all", "its speedup (95%)", *tasks)
    return Table(head, tuple(_line(one, list(tasks)) for one in profiles))


def _line(one: Calibrated, tasks: Sequence[str]) -> tuple[str, ...]:
    advice = one.calibration.recommendation
    best = {row.task: row.best for row in one.summary.tasks}
    return (
        one.name,
        one.calibration.created,
        one.profile.fingerprint or NONE,
        length(advice.draft_length) if advice else NONE,
        ratio(advice.speedup) if advice else NONE,
        *(length(choice.draft_length) if (choice := best.get(task)) else NONE for task in tasks),
    )
