"""Runs the steps of an acceptance in order, each within its budget, and resumes by fingerprints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.variant import fingerprint_of
from trt_mtp.controller.accept.command import tail
from trt_mtp.controller.accept.journal import Journal
from trt_mtp.controller.accept.step import (
    Acceptance,
    Budget,
    Outcome,
    OverBudgetError,
    Status,
    Step,
    phrases_in,
)
from trt_mtp.errors import InputError, TrtMtpError


def run_steps(steps: Sequence[Step], acceptance: Acceptance, journal: Journal) -> Iterator[Outcome]:
    """How each step ended, as they end. What a step leaves running ends with `acceptance.live`.

    A step that passed before with the same inputs is not run again. A step whose needs did not pass
    is not run. An interruption leaves what ended before it in the journal.
    """
    ended: dict[str, Outcome] = {}
    for at, step in enumerate(steps):
        outcome = _unrunnable(step, acceptance, ended)
        if outcome is None:
            outcome = _resumed(step, steps[at + 1 :], acceptance, journal, ended)
        if outcome is None:
            outcome = _run(step, acceptance)
            journal.add(outcome, fingerprint(step, acceptance))
        ended[step.name] = outcome
        acceptance.facts[step.name] = outcome.facts
        yield outcome


def fingerprint(step: Step, acceptance: Acceptance) -> str:
    """A hash of what a step's result depends on."""
    options = acceptance.options
    inputs: Any = None if step.inputs is None else step.inputs(acceptance)
    return fingerprint_of(
        [step.name, __version__, options.engine, list(options.draft_lengths), inputs]
    )


def _unrunnable(step: Step, acceptance: Acceptance, ended: Mapping[str, Outcome]) -> Outcome | None:
    """The outcome of a step that was skipped, or whose needs did not pass."""
    if step.name in acceptance.options.skipped:
        return Outcome(step.name, "skipped", reason="by --skip")
    for need in step.needs:
        # a server must be running; what was built before may be used without building again
        is_met = ended[need].status == "passed" or (
            need == "build" and ended[need].status == "skipped"
        )
        if not is_met:
            return Outcome(step.name, "not run", reason=f"{need} {ended[need].status}")
    return None


def _resumed(
    step: Step,
    later: Sequence[Step],
    acceptance: Acceptance,
    journal: Journal,
    ended: Mapping[str, Outcome],
) -> Outcome | None:
    """What the journal has of a step; None where it must run.

    A running server is of use only for a later step, so it is resumed if all of those are.
    """
    if step.inputs is None:
        return None
    before = journal.passed(step.name, fingerprint(step, acceptance))
    if before is None or not step.is_live:
        return before
    for other in later:
        is_wanted = step.name in other.needs and other.name not in acceptance.options.skipped
        if is_wanted and _resumed(other, (), acceptance, journal, ended) is None:
            return None
    return before


def _run(step: Step, acceptance: Acceptance) -> Outcome:
    options, log = acceptance.options, acceptance.log(step.name)
    budget = Budget(options.budgets.get(step.name, step.budget_s[options.engine]))
    acceptance.meter.say(f"{step.name}: at most {budget.seconds:.0f} s")
    log.unlink(missing_ok=True)
    facts: dict[str, Any] = {}
    status: Status = "passed"
    try:
        result = step.run(acceptance, budget)
        facts, reason = result.facts, result.problem or result.not_tried
        status = "failed" if result.problem else "skipped" if result.not_tried else "passed"
    except OverBudgetError as error:
        status, reason = "over budget", str(error)
    except InputError as error:
        status, reason = "bad input", str(error)
    except TrtMtpError as error:
        status, reason = "failed", str(error)
    told = () if status in ("passed", "skipped") else phrases_in(reason + tail(log))
    return Outcome(step.name, status, budget.seconds, round(budget.took_s, 1), facts, reason, told)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """2 after bad input, 1 where a step did not pass, 0 where all did or were skipped."""
    if any(outcome.status == "bad input" for outcome in outcomes):
        return InputError.exit_code
    return int(any(outcome.status not in ("passed", "skipped") for outcome in outcomes))
