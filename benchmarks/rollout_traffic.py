"""What clients notice of a rollout: time to the first token before it and while it is done.

`python -m benchmarks.rollout_traffic [--json] [--short]`

The embedded CPU engine serves the small checkpoint at draft lengths 0 and 3, a gateway stands in
front, and clients send requests at steady intervals, whether or not earlier ones are answered. The
same load runs before each rollout and throughout it, several times over; the ratio is the median of
those of neighbors. A rollout is complete: another build of K = 3 is loaded, compared, shadowed,
given a half and then all of the traffic, and the old one is unloaded.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.rollout_fixtures import Place, gateway
from trt_mtp.build.variant import EngineVariant, write_variant
from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.controller.rollout.control import start
from trt_mtp.controller.rollout.spec import read_spec
from trt_mtp.controller.up import TINY_CHECKPOINT, build
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.serving import admin_key_in, resolve_variants, serving

NUM_CLIENTS = 4
GATES = {"window_s": 5.0, "min_requests": 20, "tolerance": 0.1}


def steps(seconds: float) -> list[dict[str, float]]:
    """Every kind of step, each for so long."""
    return [
        {"shadow": 20, "at_least_s": seconds, "at_most_s": 300},
        {"set_weight": 50, "at_least_s": seconds, "at_most_s": 300},
        {"set_weight": 100, "at_least_s": seconds, "at_most_s": 300},
    ]


@dataclass(slots=True)
class Seen:
    """What the clients got."""

    ttft_s: list[float] = field(default_factory=list)
    during: dict[str, list[float]] = field(default_factory=dict)  # by what was being done
    errors: list[str] = field(default_factory=list)


class Load:
    """Requests at steady intervals, from a few clients with a stream each."""

    def __init__(self, address: str, prompts: Sequence[Prompt], interval_s: float) -> None:
        self.seen = Seen()
        self.action = ""  # of the rollout
        self._ended = threading.Event()
        numbers = itertools.count()
        self._threads = [
            threading.Thread(target=self._run, args=(address, prompts, interval_s, index, numbers))
            for index in range(NUM_CLIENTS)
        ]

    def _run(
        self,
        address: str,
        prompts: Sequence[Prompt],
        interval_s: float,
        index: int,
        numbers: Iterator[int],
    ) -> None:
        due_s = time.monotonic() + index * interval_s / NUM_CLIENTS
        with StreamClient(address) as client:
            while not self._ended.is_set():
                time.sleep(max(due_s - time.monotonic(), 0))
                due_s += interval_s
                number = next(numbers)
                prompt = prompts[number % len(prompts)]
                session = {"session_id": str(number)}
                seen, action = self.seen, self.action
                try:
                    answer = client.ask("qwen_mtp", replace(prompt, parameters=session))
                    seen.ttft_s.append(answer.ttft_s)
                    seen.during.setdefault(action, []).append(answer.ttft_s)
                except TrtMtpError as error:
                    seen.errors.append(str(error))

    @contextmanager
    def running(self) -> Iterator[None]:
        """All clients."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()  # an answer may pause for REPLY_TIMEOUT_S at most

    def take(self) -> Seen:
        """What was seen since the last time."""
        seen, self.seen = self.seen, Seen()
        return seen


def measure(num_rollouts: int, before_s: float, step_s: float, interval_s: float) -> dict[str, Any]:
    """One rollout after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(str(TINY_CHECKPOINT), "0,3", folder / "engines")
        served = resolve_variants([folder / "engines"])
        builds = [another_build(served[1], folder, number) for number in range(num_rollouts)]
        prompt_set = read_prompt_set(str(TINY_CHECKPOINT / "prompts.jsonl"))
        drawn = prompt_set.drawn(max_tokens=32, temperature=0.0, seed=0)
        prompts = [prompt for part in drawn.prompts.values() for prompt in part]
        access = GrpcAccess(admin_key=admin_key_in(folder / "admin.key"))
        with (
            serving(served, repository=folder / "repository", access=access) as server,
            gateway(folder, server.grpc_url) as address,
        ):
            here = Place(folder, (server,), address)
            load = Load(address, prompts, interval_s)
            with load.running():
                time.sleep(before_s / 4)  # warm up
                runs = [one_rollout(here, build, load, before_s, step_s) for build in builds]
    return report(runs)


def one_rollout(
    here: Place, build: EngineVariant, load: Load, before_s: float, step_s: float
) -> dict[str, Any]:
    """Some time without a rollout, then one."""
    file = here.spec(build.folder, "k3", build.folder.name, steps=steps(step_s), gates=GATES)
    load.take()
    time.sleep(before_s)
    before, started_at = load.take(), time.monotonic()

    def note(action: str) -> None:
        load.action = action

    status = start(read_spec(file), note)
    during = load.take()
    return {
        "phase": status.rollout.phase,
        "rollout_s": round(time.monotonic() - started_at, 1),
        "requests": [len(before.ttft_s), len(during.ttft_s)],
        "errors": len(before.errors) + len(during.errors),
        "ttft_p50_ms": [percentile_ms(seen, 50) for seen in (before, during)],
        "ttft_p99_ms": [percentile_ms(seen, 99) for seen in (before, during)],
        "ttft_worst_ms": {
            action: round(1e3 * max(seen), 1) for action, seen in during.during.items()
        },
    }


def another_build(variant: EngineVariant, folder: Path, number: int) -> EngineVariant:
    """The same engine once more, as a rebuild gives it."""
    copy = folder / "engines" / f"k3-{number}"
    copy.mkdir()
    created = f"2026-01-01T00:00:{number:02}+00:00"
    return write_variant(copy, replace(variant.record, created=created))


def percentile_ms(seen: Seen, percent: int) -> float:
    """Of the times to the first token."""
    cuts = statistics.quantiles(seen.ttft_s, n=100, method="inclusive")
    return round(1e3 * cuts[percent - 1], 2)


def report(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rollouts, and the median ratios of during to before."""

    def ratio(key: str) -> float:
        return round(statistics.median(float(run[key][1] / run[key][0]) for run in runs), 3)

    return {
        "schema_version": 1,
        "errors": sum(run["errors"] for run in runs),
        "ttft_p50_ratio": ratio("ttft_p50_ms"),
        "ttft_p99_ratio": ratio("ttft_p99_ms"),
        "rollouts": list(runs),
    }


def main() -> None:
    """Run it and print what it gave."""
    parser = argparse.ArgumentParser(description="What clients notice of a rollout.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="a few seconds for each step")
    parser.add_argument("--interval-s", type=float, default=1.0, help="between a client's requests")
    options = parser.parse_args()
    size = (1, 15, 5) if options.short else (5, 45, 10)
    result = measure(*size, options.interval_s)
    if options.json:
        print(json.dumps(result))
        return
    for run in result.pop("rollouts"):
        print("  ".join(f"{key} {value}" for key, value in run.items()))
    print("  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
