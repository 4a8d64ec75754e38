"""How large a profile of 13 tasks, 6 variants and 8 loads is, and how long it takes to load.

`python -m benchmarks.profile_file`
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.large_profile import largest
from trt_mtp.controller.profile import read_profile, write_profile

ROUNDS = 30


def main() -> None:
    """Write one with every cell measured, read it again and again, print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.json"
        write_profile(file, largest())
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            read_profile(file)
            times.append(1e3 * (time.perf_counter() - start))
        result = {
            "bytes": file.stat().st_size,
            "load_ms_median": round(statistics.median(times), 1),
            "load_ms_max": round(max(times), 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
