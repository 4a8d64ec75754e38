"""Compiles the CPU engine's kernels, if that has not been done: `python -m tests.compile_kernels`.

`make test` does it first, outside the tests' deadlines; workers and their servers would all do it,
at the same time.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.engine_fixtures import make_drafting_checkpoint, mixed_requests, opened, pack
from trt_mtp.serve.engine.collect import collect

VOCABULARY = 320


def main() -> None:
    """Let an engine answer, which compiles what is not in the cache."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_drafting_checkpoint(Path(folder) / "checkpoint")
        requests = mixed_requests(2, VOCABULARY, greedy=False, max_tokens=4)
        with opened(pack(checkpoint, Path(folder) / "packed"), draft_length=3) as engine:
            collect(engine, requests)
    print(f"kernels are compiled ({time.monotonic() - start:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
