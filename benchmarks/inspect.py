"""Time and memory of inspecting a 2.4-terabyte checkpoint: `python -m benchmarks.inspect`.

The checkpoint has the names and shapes of Qwen3.8-2.4T-A95B in FP8, one tensor for each expert, in
400 sparse files, so that it takes next to no room on the disk. The limit is on processor time,
which other programs on the machine disturb less than the time on the clock.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.real_checkpoints import write_real

MOST_SECONDS = 2.0
MOST_MEGABYTES = 300
RUNS = 5


def inspect_once(checkpoint: Path) -> tuple[float, float]:
    """Processor and wall-clock seconds of one `trt-mtp inspect` in a process of its own."""
    command = [sys.executable, "-m", "trt_mtp", "inspect", str(checkpoint), "--json"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Write the checkpoint, inspect it several times, and compare with the limits."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_real("qwen3.8-2.4t-a95b", Path(folder), "fp8", num_shards=400)
        runs = sorted(inspect_once(checkpoint) for _ in range(RUNS))
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    cpu, wall = runs[RUNS // 2]
    print(f"median of {RUNS} runs: {cpu:.2f} s of processor time (limit {MOST_SECONDS})")
    print(
        f"{wall:.2f} s on the clock, load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
    )
    print(f"at most {megabytes:.0f} MB of memory (limit {MOST_MEGABYTES})")
    if cpu > MOST_SECONDS or megabytes > MOST_MEGABYTES:
        sys.exit(1)


if __name__ == "__main__":
    main()
