"""The traffic that a plan is for: requests per second and their lengths, by task."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_mtp.controller.decision_log import LogRecord, parse_record
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, open_regular

BUSY_S = 600.0  # a log's rates are those of its busiest stretch of this length
MAX_SAMPLES = 5000  # lengths kept of a task
MAX_RATE = 1e6
MAX_RATES = 1 << 20  # characters of a file of rates
Tokens = Annotated[float, Field(ge=1, le=1e7, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class TaskTraffic:
    """The requests of one task; lengths are means, `seen` has those of single requests if known."""

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    seen: tuple[tuple[int, int], ...] = ()  # (prompt, output) tokens


Traffic = Mapping[str, TaskTraffic]


class _Rate(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_s: Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]
    prompt_tokens: Tokens
    output_tokens: Tokens


class _Rates(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    tasks: Annotated[dict[str, _Rate], Field(min_length=1)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    time_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    task: str
    prompt_tokens: Tokens
    output_tokens: Tokens


class Seen(NamedTuple):
    """One request of a log or a trace."""

    at: float  # in seconds, from any origin
    task: str
    prompt_tokens: int
    output_tokens: int


def total_rate(traffic: Traffic) -> float:
    """Requests per second of all tasks."""
    return sum(task.requests_per_s for task in traffic.values())


def read_traffic(path: Path) -> dict[str, TaskTraffic]:
    """The traffic in a file of rates by task, a trace with lengths, or a decision log.

    Raises InputError for anything else, and if lengths are missing.
    """
    with _opened(path) as file:
        rates = _whole(file.read(MAX_RATES))
    if rates is not None:
        return _from_rates(rates, str(path))
    return from_requests(list(read_requests(path)), str(path))


def read_requests(path: Path) -> Iterator[Seen]:
    """The answered requests of a trace or a decision log; raises InputError."""
    with _opened(path) as file:
        yield from _lines(file, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[TextIOWrapper]:
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} can't be read: it is not UTF-8 text") from None


def _whole(text: str) -> dict[str, Any] | None:
    """The JSON object that the whole text is; None for JSON lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(value, dict) and {"time_s", "decision"} & value.keys()
    return value if isinstance(value, dict) and not is_record else None


def _from_rates(value: dict[str, Any], where: str) -> dict[str, TaskTraffic]:
    try:
        rates = _Rates.model_validate(value)
    except ValidationError as error:
        known = [*_Rates.model_fields, *_Rate.model_fields]
        problem = first_problem(error, known)
        raise InputError(
            f"{where}: {problem}; expected requests_per_s, prompt_tokens and output_tokens for "
            "each task"
        ) from None
    for task in rates.tasks:
        _check_task(task, where)
    return {
        task: TaskTraffic(rate.requests_per_s, rate.prompt_tokens, rate.output_tokens)
        for task, rate in sorted(rates.tasks.items())  # the same plan whatever their order
    }


def _check_task(task: str, where: str) -> None:
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise InputError(f"{where}: {task!r:.80} is not a task{nearest(task, TASKS)} ({known})")


def _lines(file: TextIOWrapper, where: str) -> Iterator[Seen]:
    for number, line in enumerate(file, 1):
        if not line.strip() or (line.startswith("{") and not line.endswith(("}", "\n"))):
            continue  # a log's last line that a kill cut off
        at = f"{where}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{at} is not JSON") from None
        if isinstance(value, dict) and "decision" in value:
            if (seen := _from_record(parse_record(line, at), at)) is not None:
                yield seen
        else:
            yield _from_line(value, at)


def _from_line(value: Any, where: str) -> Seen:
    try:
        line = _Line.model_validate(value)
    except ValidationError as error:
        problem = first_problem(error, _Line.model_fields)
        raise InputError(
            f"{where}: {problem}; expected time_s, task, prompt_tokens and output_tokens, or a "
            "decision log"
        ) from None
    _check_task(line.task, where)
    return Seen(line.time_s, line.task, round(line.prompt_tokens), round(line.output_tokens))


def _from_record(record: LogRecord, where: str) -> Seen | None:
    """A logged request; None if it got no answer."""
    decision, outcome = record.decision, record.outcome
    if outcome.num_output_tokens < 1:
        return None
    if decision.prompt_tokens is None:
        raise InputError(
            f"{where} doesn't say how long the prompt was: log with this version of the gateway, "
            "or give rates and lengths by task"
        )
    prompt = max(1, decision.prompt_tokens)
    return Seen(decision.now_s, decision.task, prompt, outcome.num_output_tokens)


def from_requests(requests: list[Seen], where: str) -> dict[str, TaskTraffic]:
    """The traffic of single requests, at the rates of their busiest ten minutes.

    Raises InputError for fewer than two requests, and for several of one instant.
    """
    if len(requests) < 2:
        raise InputError(f"{where} holds {len(requests)} answered requests: expected two or more")
    requests.sort()
    if requests[0].at == requests[-1].at:
        raise InputError(f"{where}: all requests have the same time, which says nothing of rates")
    begin, span = _busiest(requests)
    by_task: dict[str, list[Seen]] = defaultdict(list)
    for one in requests:
        by_task[one.task].append(one)
    traffic = {}
    for task, own in sorted(by_task.items()):
        busy = sum(begin <= one.at < begin + span for one in own)
        if busy:
            seen = tuple(one[2:] for one in own[:: max(1, len(own) // MAX_SAMPLES)])
            traffic[task] = TaskTraffic(
                busy / span,
                sum(prompt for prompt, _ in seen) / len(seen),
                sum(output for _, output in seen) / len(seen),
                seen,
            )
    return traffic


def _busiest(requests: list[Seen]) -> tuple[float, float]:
    """Begin and length, in seconds, of the stretch in which most output tokens were asked for."""
    first, last = requests[0].at, requests[-1].at
    if last - first <= BUSY_S:
        # n requests span n - 1 intervals
        return first, (last - first) * len(requests) / (len(requests) - 1)
    begin, tokens, most = 0, 0, (0, first)
    for one in requests:
        tokens += one.output_tokens
        while requests[begin].at <= one.at - BUSY_S:
            tokens -= requests[begin].output_tokens
            begin += 1
        most = max(most, (tokens, requests[begin].at), key=lambda part: part[0])
    return most[1], BUSY_S
