"""The report's sentences: what to do, in words that need no knowledge of speculation."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence

from trt_mtp.controller.calibration import ALLOWED_LOSS, Interval
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.profile_text import disturbance, is_decided
from trt_mtp.controller.report.summary import Summary, TaskRow

# the tasks of controller/tasks.py in everyday words
TASK_WORDS = {
    "coding": "writing and changing program code",
    "math": "calculations and proofs",
    "reasoning": "puzzles and arguments in several steps",
    "stem": "questions of science and engineering",
    "humanities": "questions of history, law, art and society",
    "qa": "short questions of fact",
    "rag": "answers from a text that comes with the question",
    "summarization": "summaries of a given text",
    "multilingual": "translation and other languages",
    "writing": "stories, letters and other prose",
    "roleplay": "speaking as a character",
    "structured_output": "JSON and other fixed forms",
    "tool_call": "calls of functions that the client offers",
}

TERMS = {
    "speculation": "The model guesses a few words ahead (drafts them) and then checks all guesses "
    "in one go. The answer is the same as without it; only the time changes.",
    "draft length, K": "How many tokens are guessed at a time. None, or K = 0, means no "
    "speculation. Longer drafts gain more where guesses are right, and cost more where they are "
    "wrong.",
    "token": "A piece of a word; the unit that a model writes in and speed is counted in.",
    "speedup": "How many times as fast the text after the first token comes, compared with no "
    "speculation on the same prompts. Below 1 it is slower. The range in brackets holds the true "
    "value with 95% confidence.",
    "acceptance rate": "The share of guessed tokens that turned out right.",
    "acceptance length, AL": "Tokens that one check brings on average, from 1 (no guess was right) "
    "to K + 1 (all were).",
    "requests at a time": "How many answers the server is working on at once: its load, also "
    "called concurrency. A busy server has less to spare for guessing.",
    "TTFT": "Time to first token: from sending a request to the first piece of its answer.",
    "TPOT": "Time per output token after the first.",
    "tok/s": "Output tokens a second of all requests at a time together.",
}


# why two speedups of one cell differ
BASIS = (
    "The speedups that advice goes by are estimated from all answers of the run: how often a "
    "task's drafts are right, over what a step costs at that load. The answers of one cell alone, "
    "shown beside them and in the plots, are fewer and scatter more."
)


def next_step(summary: Summary, file: str) -> tuple[str, str]:
    """What to do with a profile: a sentence and a command, which a shell takes as it is."""
    advice = summary.calibration.recommendation
    named, journal = shlex.quote(file), shlex.quote(f"{file}.journal")
    if advice is None:
        return "Measure a variant at draft length 0 as well", "trt-mtp calibrate"
    if disturbance(summary.calibration):
        again = f"rm {journal} && trt-mtp calibrate … -o {named}"
        return "Measure again while the machine does nothing else", again
    if not is_decided(summary.calibration):
        more = f"trt-mtp calibrate … --budget 30m -o {named}"
        return "Measure on, with the same command and more time", more
    if advice.hold_one or not any(best.draft_length for best in advice.best):
        return "Host that variant alone", f"trt-mtp serve engines/k{advice.draft_length}"
    return "Route with it", f"trt-mtp gateway --triton HOST:PORT --profile {named}"


def facts(profile: Profile, summary: Summary) -> str:
    """What was measured, on what and when: one line."""
    known = {**profile.measured_on, **summary.calibration.environment}
    device, count = known.get("device", ""), known.get("device_count", "1")
    parts = [
        known.get("model", "") or f"checkpoint {known.get('checkpoint', '')[:12]}".rstrip(),
        device + (f" × {count}" if device and count != "1" else ""),
        " ".join(filter(None, ["engine", known.get("engine", ""), known.get("precision", "")])),
        summary.calibration.created[:10],
    ]
    return " · ".join(part for part in parts if part not in ("", "checkpoint", "engine"))


def name(task: str) -> str:
    """A task in a sentence: `structured output`."""
    return task.replace("_", " ")


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def ratio(interval: Interval) -> str:
    """An estimate with its interval: `1.42 (1.29 to 1.53)`."""
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def headline(summary: Summary) -> tuple[str, ...]:
    """The advice, a sentence or two a line: lengths, loads, what is between, what is unsure."""
    if summary.calibration.recommendation is None:
        return (
            "No advice: no variant without speculation was measured, so nothing can be said of "
            "what drafting gains.",
        )
    lines = [_lengths(summary), _loads(summary), _between(summary), _unsure(summary.tasks)]
    return tuple(filter(None, lines))


def _use(summary: Summary) -> str:
    """How an advice begins: an order only if it is decided."""
    return "Use" if is_decided(summary.calibration) else "Likeliest so far:"


def _unsure(rows: Iterable[TaskRow]) -> str:
    """The tasks whose gain may be none; empty if there are none such."""
    names = [name(row.task) for row in rows if row.best and row.best.draft_length and
             (0 in row.best.ties or row.best.speedup.low <= 1)]  # fmt: skip
    if not names:
        return ""
    return f"For {listed(names)} the gain is within the measurement's uncertainty."


def _between(summary: Summary) -> str:
    """Lengths and none between the lowest load and the last; empty if there is nothing odd."""
    text = ""
    if _is_changing(summary):
        text = "The best length changes with the load: the first table has it."
    gaps: dict[int, list[str]] = {}
    for row in (row for row in summary.tasks if row.best and row.best.draft_length):
        for load in (c for c in summary.concurrencies if c < (row.none_from or math.inf)):
            best = summary.best(row.task, load)
            if best is not None and best.draft_length == 0:
                gaps.setdefault(load, []).append(name(row.task))
    for load, names in gaps.items():
        text += f" At {at_a_time(load)} none is best for {listed(names)}."
    return text.strip()


def _is_changing(summary: Summary) -> bool:
    """Whether a task's length, where it drafts, is another at another load."""
    advice = summary.calibration.recommendation
    lengths: dict[str, set[int]] = {}
    for one in advice.best if advice else ():
        lengths.setdefault(one.task, set()).add(one.draft_length)
    return any(len(chosen - {0}) > 1 for chosen in lengths.values())


def _lengths(summary: Summary) -> str:
    groups: dict[int, list[str]] = {}
    for row in summary.tasks:
        if row.best:
            groups.setdefault(row.best.draft_length, []).append(name(row.task))
    if not groups:
        return "No task was measured at the lowest load."
    if set(groups) == {0}:
        return (
            f"{_use(summary)} no speculation. No draft length that was measured is faster for any "
            "task."
        )
    use = _use(summary)
    if _is_changing(summary):
        comma = "" if use == "Use" else ","
        use = f"At {at_a_time(summary.concurrencies[0])}{comma} {use[0].lower()}{use[1:]}"
    if len(groups) == 1:
        return f"{use} draft length {next(iter(groups))} for every task."
    parts = [
        f"{'draft length ' if i == 0 else ''}{length or 'none'} for {listed(groups[length])}"
        for i, length in enumerate(sorted(groups, reverse=True))
    ]
    return f"{use} {'; '.join(parts)}."


def _loads(summary: Summary) -> str:
    """From which load on to use none; empty if no task drafts at all."""
    drafting = [row for row in summary.tasks if row.best and row.best.draft_length > 0]
    if not drafting:
        return ""
    highest = summary.concurrencies[-1]
    if len(summary.concurrencies) == 1:
        return f"Only {at_a_time(highest)} was measured, so nothing is known of other loads."
    groups: dict[int | None, list[str]] = {}
    for row in drafting:
        groups.setdefault(row.none_from, []).append(name(row.task))
    if set(groups) == {None}:
        where = "" if len(drafting) == len(summary.tasks) else ", where advised,"
        return (
            f"Drafting{where} stays faster up to {at_a_time(highest)}, the highest load measured."
        )
    if len(groups) == 1:
        use = "use" if is_decided(summary.calibration) else "likeliest"
        return f"From {at_a_time(next(iter(groups)))} on, {use} none."
    return f"{_use(summary)} none {_different_loads(groups, highest)}"


def _different_loads(groups: Mapping[int | None, Sequence[str]], highest: int) -> str:
    parts = [
        f"from {at_a_time(load) if i == 0 else load} on for {listed(groups[load])}"
        for i, load in enumerate(sorted(load for load in groups if load is not None))
    ]
    text = f"{'; '.join(parts)}."
    if None in groups:
        text += f" For {listed(groups[None])} drafting stays faster up to {highest}, the highest "
        text += "load measured."
    return text


def at_a_time(load: int | None) -> str:
    """`6 requests at a time`."""
    return f"{load} request{'' if load == 1 else 's'} at a time"


def hosting(summary: Summary) -> str:
    """Whether to host several variants or one; empty without a recommendation."""
    advice = summary.calibration.recommendation
    if advice is None:
        return ""
    single, gain = "the one without speculation", ratio(advice.routed_speedup)
    if advice.draft_length:
        single = (
            f"the one with draft length {advice.draft_length} ({ratio(advice.speedup)} times as "
            "fast as none over all tasks)"
        )
    if advice.hold_one and is_decided(summary.calibration):
        return (
            f"One variant is enough, {single}: choosing by task and load is {gain} times as fast "
            "as it, no more than the measurement's uncertainty."
        )
    alone = "If you host one variant only, take"
    if not is_decided(summary.calibration):
        alone = "The best variant to host alone is, so far,"
    return f"{alone} {single}; choosing by task and load is {gain} times as fast as that."


def certainty(summary: Summary) -> str:
    """How many of the choices are settled; empty if that is not known."""
    advice = summary.calibration.recommendation
    known = [one for one in advice.best if one.may_lose is not None] if advice else []
    unsettled = sum(not one.is_settled for one in known)
    if not known:
        return ""
    if not unsettled:
        return (
            f"No other length that was measured is more than {ALLOWED_LOSS:.0%} faster than the "
            "one shown, with 95% confidence in each."
        )
    return (
        f"A question mark says that another length may be more than {ALLOWED_LOSS:.0%} faster; for "
        f"the other {len(known) - unsettled} of {len(known)} choices none is, with 95% confidence "
        "in each."
    )


def coverage(summary: Summary) -> str:
    """How much was measured, and how well the rest is known."""
    left = sum(row.cell is None for row in summary.rows)
    guessed = sum(row.cell is None and row.predicted is not None for row in summary.rows)
    text = f"{len(summary.rows) - left} of {len(summary.rows)} cells were measured"
    if left:
        text += f"; the speedup of {guessed} more is predicted from them, marked ≈"
    quality = summary.calibration.prediction
    if quality is not None:
        text += (
            f". Predicting {quality.num_cells} measured speedups from the others missed them by "
            f"{quality.median_abs_error:.1%} in the median, {quality.p90_abs_error:.1%} at the "
            "90th percentile"
        )
    return text + "."
