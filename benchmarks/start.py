"""How long commands take to start: `trt-mtp --help`, and a gateway beside a Triton that is ready.

`python -m benchmarks.start [--json] [--short]`

Each is timed in turn with an interpreter that does nothing on the same machine: the ratio says more
than the time. A gateway is ready when it prints its line.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks._report import arguments, print_report
from benchmarks.gateway import started_gateway
from tests.gateway_fixtures import triton_of_doubles


@dataclass(frozen=True, slots=True)
class Started:
    """The medians of a command's starts, and of the interpreter's beside them."""

    command: str
    num_starts: int
    median_s: float
    interpreter_s: float
    ratio: float  # median of the pairs


def run_s(*arguments: str) -> float:
    """Seconds that an interpreter takes from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def gateway_s(triton: str) -> float:
    """Seconds until a gateway is ready."""
    began = time.perf_counter()
    with started_gateway(triton):
        return time.perf_counter() - began


def measure(command: str, start_s: Callable[[], float], num_starts: int) -> Started:
    """Start it and the bare interpreter in turn."""
    pairs = [(start_s(), run_s("-c", "pass")) for _ in range(num_starts)]
    own, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return Started(command, num_starts, round(own, 3), round(bare, 3), round(ratio, 1))


def main() -> None:
    """Measure and print."""
    options = arguments("How long commands take to start.", "five starts in place of 21")
    num_starts = 5 if options.short else 21
    with (
        tempfile.TemporaryDirectory() as folder,
        triton_of_doubles(Path(folder) / "triton") as triton,
    ):
        found = [
            measure("trt-mtp --help", partial(run_s, "-m", "trt_mtp", "--help"), num_starts),
            measure("trt-mtp gateway, ready", partial(gateway_s, triton.grpc_url), num_starts),
        ]
    lines = [
        f"{each.command:24} {each.ratio:5.1f} interpreters ({each.median_s:.2f} s, "
        f"an interpreter {each.interpreter_s:.3f} s)"
        for each in found
    ]
    print_report(options.json, {"commands": [asdict(each) for each in found]}, lines)


if __name__ == "__main__":
    main()
