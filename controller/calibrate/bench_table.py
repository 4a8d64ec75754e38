"""The table of `trt-mtp bench`, in 80 columns, or with more of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trt_mtp.controller.calibrate.bench import TaskResult

TASK_WIDTH = 17
NOTE = (
    "times in ms; ITL is the time per token after the first, as AIPerf has it;\n"
    "AL is the mean over requests of the tokens that a step brings, bonus included"
)


class Column(NamedTuple):
    """A column of numbers, to the right."""

    title: str
    width: int
    show: Callable[[TaskResult], str]


def milliseconds(value: float) -> str:
    """Never wider than six characters below ten million.

    >>> [milliseconds(x) for x in (0.123, 12.345, 123.45, 123456.7)]
    ['0.12', '12.35', '123.5', '123457']
    """
    digits = 2 if value < 99.995 else 1 if value < 9999.95 else 0
    return f"{value:.{digits}f}"


def _requests(line: TaskResult) -> str:
    failed = f"+{line.error_request_count}!" if line.error_request_count else ""
    return f"{line.request_count}{failed}"


def _latency(name: str, percentile: str) -> Callable[[TaskResult], str]:
    return lambda line: milliseconds(getattr(line.latencies[name], percentile))


def _if_told(text: Callable[[TaskResult], str]) -> Callable[[TaskResult], str]:
    """`-` where the server tells no acceptance."""
    return lambda line: text(line) if line.joint else "-"


TTFT, ITL, LATENCY = "time_to_first_token", "inter_token_latency", "request_latency"
HEAD = (
    Column("requests", 9, _requests),
    Column("tok/s", 9, lambda line: f"{line.output_token_throughput:.1f}"),
)
TAIL = (
    Column("AL", 5, _if_told(lambda line: f"{line.category_al:.2f}")),
    Column("accepted", 9, _if_told(lambda line: f"{line.acceptance_rate:.0%}")),
)
COLUMNS = (
    *HEAD,
    Column("TTFT p50", 9, _latency(TTFT, "p50")),
    Column("p95", 7, _latency(TTFT, "p95")),
    Column("ITL p50", 8, _latency(ITL, "p50")),
    Column("p95", 7, _latency(ITL, "p95")),
    *TAIL,
)
WIDE = (
    *HEAD,
    Column("tokens", 9, lambda line: str(line.output_tokens)),
    Column("TTFT p50", 9, _latency(TTFT, "p50")),
    Column("p95", 7, _latency(TTFT, "p95")),
    Column("p99", 7, _latency(TTFT, "p99")),
    Column("ITL p50", 8, _latency(ITL, "p50")),
    Column("p95", 7, _latency(ITL, "p95")),
    Column("p99", 7, _latency(ITL, "p99")),
    Column("whole p50", 10, _latency(LATENCY, "p50")),
    Column("p95", 7, _latency(LATENCY, "p95")),
    *TAIL,
)


def head(columns: Sequence[Column]) -> str:
    """The names of the columns."""
    return f"{'task':<{TASK_WIDTH}}" + "".join(f"{one.title:>{one.width}}" for one in columns)


def row(line: TaskResult, columns: Sequence[Column]) -> str:
    """One task's numbers under the names."""
    cells = "".join(f"{one.show(line):>{one.width}}" for one in columns)
    return f"{line.task:<{TASK_WIDTH}}" + cells
