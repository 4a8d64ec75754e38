"""Faults under load, and what became of the streams.

`python -m tests.chaos [--json] [--short] [--seed N] [--faults N]`
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trt_mtp  # noqa: F401 (sets up gRPC, which what follows imports)
from tests.chaos.campaign import parts, run
from tests.chaos.tally import table
from trt_mtp.serve.processes import terminate_as_interrupt

log = logging.getLogger(__name__)

NUM_FAULTS = 1_000
NUM_SHORT = 20
VARIANTS_SHARE = 0.15
INTERRUPTED = 130
MIGRATE = Path("/proc/sys/net/ipv4/tcp_migrate_req")


def main() -> int:
    """Exit 0 when no stream was lost, none was left running, and no wait was without an end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    parser.add_argument("--short", action="store_true", help=f"{NUM_SHORT} faults, doubles only")
    parser.add_argument("--seed", type=int, default=1, help="which faults, when, and to what")
    parser.add_argument("--faults", type=int, default=None, help=f"default {NUM_FAULTS}")
    arguments = parser.parse_args()
    num_faults = arguments.faults or (NUM_SHORT if arguments.short else NUM_FAULTS)
    plan = parts(num_faults, 0.0 if arguments.short else VARIANTS_SHARE)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        # so that nothing is left behind
        with terminate_as_interrupt(), connections_that_migrate():
            report = asyncio.run(run(plan, arguments.seed, log.info))
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(report) if arguments.json else table(report))
    return 1 if report["lost"] or report["stuck"] or report["unfinished"] else 0


@contextmanager
def connections_that_migrate() -> Iterator[None]:
    """Connections that wait for a gateway that ends go to the next, as docs/gateway.md advises.

    For all of this machine while it lasts; only root may say so.
    """
    try:
        before = MIGRATE.read_text()
        MIGRATE.write_text("1")
    except OSError as error:
        log.info("connections that wait for a gateway when it ends are reset: %s", error)
        yield
        return
    try:
        yield
    finally:
        MIGRATE.write_text(before)


if __name__ == "__main__":
    sys.exit(main())
