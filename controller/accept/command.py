"""A command of trt-mtp as a step runs it: in its own process, logged, within a budget."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.controller.accept.step import Budget, OverBudgetError
from trt_mtp.controller.up import child
from trt_mtp.errors import InputError, TrtMtpError

TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that ended with 0 or 1."""

    code: int
    value: dict[str, Any]  # the JSON that it printed; empty if it printed none
    said: str  # its last line on stderr


def run_command(budget: Budget, log: Path, *arguments: str) -> Ended:
    """Run `trt-mtp` with `arguments`; its stderr goes to the end of `log`.

    Raises OverBudgetError when the budget is over, and what the command ended with: InputError for
    2, TrtMtpError for all others but 0 and for 1 without JSON.
    """
    with child(*arguments, log=log) as process:
        try:
            output, _ = process.communicate(timeout=budget.left_s)
        except subprocess.TimeoutExpired:
            raise OverBudgetError(
                f"trt-mtp {arguments[0]} was not done after its budget of {budget.seconds:.0f} s"
            ) from None
    code, said = process.returncode, last_line(log)
    if code == InputError.exit_code:
        raise InputError(said)
    if code not in (0, 1) or (code and not output.strip()):
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise TrtMtpError(f"trt-mtp {arguments[0]} {how}: {said}")
    return Ended(code, json.loads(output) if output.strip() else {}, said)


def tail(log: Path) -> str:
    """The end of a log, empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, without the command's name."""
    lines = [line for line in tail(log).splitlines() if line.strip()]
    return lines[-1].removeprefix("trt-mtp: ").strip() if lines else "it said nothing"
