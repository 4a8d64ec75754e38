"""What the limits of chat templates cost: the same messages rendered with and without them.

`python -m benchmarks.template_limits [--json] [--short]`
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from benchmarks._report import arguments, print_report
from trt_mtp.build import chat_template
from trt_mtp.build.chat_template import read_chat_template
from trt_mtp.controller.up import TINY_CHECKPOINT

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Write a story about a lighthouse."},
]
NUM_RENDERINGS = {False: 2_000, True: 200}  # by --short
NUM_REPETITIONS = 7


def seconds(render: Callable[[], Any], number: int) -> float:
    """Processor time of all threads for `number` renderings."""
    before = time.process_time()
    for _ in range(number):
        render()
    return time.process_time() - before


def main() -> None:
    """Measure in turns and print the medians."""
    options = arguments("What the limits of chat templates cost.", "a tenth of the renderings")
    number = NUM_RENDERINGS[options.short]
    template = read_chat_template(TINY_CHECKPOINT)
    assert template is not None

    def render() -> str:
        return template.render(MESSAGES)

    ratios, limited_us = [], []
    for _ in range(NUM_REPETITIONS):
        limited = seconds(render, number)
        with patch.object(chat_template, "limited", nullcontext):
            free = seconds(render, number)
        ratios.append(limited / free)
        limited_us.append(limited / number * 1e6)
    values = {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
        "us_per_rendering": round(statistics.median(limited_us), 1),
    }
    line = (
        f"with limits / without: {values['ratio']:.2f} ({values['ratio_low']:.2f} to "
        f"{values['ratio_high']:.2f}), {values['us_per_rendering']:.0f} us of processor time each"
    )
    print_report(options.json, values, [line])


if __name__ == "__main__":
    main()
