"""What it costs that chat templates are rendered in a process of their own, which has limits.

`python -m benchmarks.templates [--json] [--short]`

The small checkpoint's template over conversations of several lengths, in both ways in turns. Both
do the same, but for the way to the other process and back, as JSON. Times are processor time, of
both processes where there are two, and the time until the text is there; medians of seven, with the
extremes of the ratios.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks._report import arguments, print_report
from benchmarks.gateway_price import cpu_ns
from tests.engine_fixtures import ASSET
from trt_mtp.build import template_process
from trt_mtp.build.chat_template import read_chat_template
from trt_mtp.build.template_process import Renderers

NUM_REPETITIONS = 7
NUM_RENDERINGS, NUM_SHORT = 400, 40
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
TURN = "Wie wird das Wetter morgen, und was soll ich anziehen? " * 5
CASES: dict[str, dict[str, Any]] = {
    "1 message": {"messages": [{"role": "user", "content": "Hi"}]},
    "20 messages, 4 tools": {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": TURN} for i in range(20)],
        "tools": [TOOL] * 4,
    },
    "1 message of 100 KB": {"messages": [{"role": "user", "content": TURN * 364}]},
}


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one case; low and high are the extremes of the ratios of processor time."""

    case: str
    own_us: float  # processor time in the process itself
    apart_us: float  # the same with a process of its own
    ratio: float
    ratio_low: float
    ratio_high: float
    own_wait_us: float  # until the text is there
    apart_wait_us: float


@dataclass(frozen=True, slots=True)
class Times:
    """Of one rendering, in microseconds."""

    cpu_us: float
    wait_us: float


def measured(render: Callable[[], object], pids: list[int], number: int) -> Times:
    """The means of `number` renderings; `pids` are other processes that have a part in them."""
    before, began = used_ns(pids), time.perf_counter()
    for _ in range(number):
        render()
    waited_s = time.perf_counter() - began
    return Times((used_ns(pids) - before) / number / 1e3, waited_s / number * 1e6)


def used_ns(pids: list[int]) -> int:
    """Processor time so far of this process and of others, which are waiting now."""
    return time.process_time_ns() + sum(map(cpu_ns, pids))


def row(case: str, source: str, number: int) -> Row:
    """Both ways in turns; a first run of each doesn't count."""
    values = {"add_generation_prompt": True, **CASES[case]}
    renderers, job = Renderers(), json.dumps([source, values]).encode()
    expected = renderers.render(source, values)
    assert json.loads(template_process._answer(job))["text"] == expected
    [process] = renderers._idle
    assert process._process is not None
    ways: dict[str, tuple[Callable[[], object], list[int]]] = {
        "own": (lambda: own(source, values), []),
        "apart": (
            lambda: renderers.render(source, values),
            [process._process.pid],
        ),
    }
    times: dict[str, list[Times]] = {name: [] for name in ways}
    for repetition in range(NUM_REPETITIONS + 1):
        for name in list(ways) if repetition % 2 else list(reversed(ways)):
            found = measured(*ways[name], number)
            if repetition:
                times[name].append(found)
    renderers.close()
    return summed(case, times["own"], times["apart"])


def own(source: str, values: dict[str, Any]) -> str:
    """The text, rendered here."""
    return template_process._compiled(source).render(**values)


def summed(case: str, own: list[Times], apart: list[Times]) -> Row:
    """The medians."""
    ratios = [b.cpu_us / a.cpu_us for a, b in zip(own, apart, strict=True)]
    cpu = (statistics.median(t.cpu_us for t in times) for times in (own, apart))
    wait = (statistics.median(t.wait_us for t in times) for times in (own, apart))
    return Row(
        case,
        *(round(value, 1) for value in cpu),
        *(round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))),
        *(round(value, 1) for value in wait),
    )


def lines(rows: list[Row]) -> Iterator[str]:
    """The rows for people."""
    yield f"{'rendering':24} {'here':>10} {'apart':>10}  apart/here            until it is there"
    for each in rows:
        ratio = f"{each.ratio:.2f} ({each.ratio_low:.2f} to {each.ratio_high:.2f})"
        yield (
            f"{each.case:24} {each.own_us:7.0f} us {each.apart_us:7.0f} us  {ratio:20}"
            f"  {each.own_wait_us:.0f} us, apart {each.apart_wait_us:.0f} us"
        )


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "", f"{NUM_SHORT} renderings in place of {NUM_RENDERINGS}")
    number = NUM_SHORT if options.short else NUM_RENDERINGS
    chat = read_chat_template(ASSET)
    assert chat is not None
    source = chat.sources[chat.chosen(with_tools=False)]
    rows = [row(case, source, number) for case in CASES]
    print_report(options.json, {"rows": [asdict(each) for each in rows]}, lines(rows))


if __name__ == "__main__":
    main()
