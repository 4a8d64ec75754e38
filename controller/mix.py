"""Shares of traffic by task, as an option has them: `coding=3,qa=1`."""

import math
from collections.abc import Mapping

from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.files import nearest

NO_NAMES: Mapping[str, Mapping[str, float]] = {}


def parse_mix(text: str, named: Mapping[str, Mapping[str, float]] = NO_NAMES) -> dict[str, float]:
    """The shares, of any sum; `named` has mixes that may be called by their name.

    Raises InputError for what is not a task, given twice, or not above 0.

    >>> parse_mix("coding=3, qa=0.5")
    {'coding': 3.0, 'qa': 0.5}
    """
    if text in named:
        return dict(named[text])
    mix: dict[str, float] = {}
    for part in text.split(","):
        task, _, share = (piece.strip() for piece in part.partition("="))
        if task not in TASKS:
            kind = f"neither a mix ({', '.join(named)}) nor a task" if named else "not a task"
            raise InputError(f"--mix: {task!r} is {kind}{nearest(task, [*named, *TASKS])}")
        if task in mix:
            raise InputError(f"--mix: {task} is given twice")
        try:
            mix[task] = float(share)
        except ValueError:
            raise InputError(f"--mix: {part!r} should be like {task}=0.5") from None
        if not 0 < mix[task] < math.inf:
            raise InputError(f"--mix: the share of {task} must be above 0")
    return mix
