"""A rollout is killed with SIGKILL at every point of its record, then called again until it ends.

`python -m benchmarks.rollout_crash [--json] [--short]`, also as `make rollout-crash [ARGS=--json]`

The points are found by a run that nobody disturbs: just before and just after every write to the
state. Two rollouts are killed at all of theirs: one that succeeds, and one whose canary answers
otherwise, so that it is taken back. A real Triton hosts doubles of variants that load and answer
quickly, a gateway process stands in front of it, and clients ask all the time: no request may fail,
and none may be answered by a variant that is not loaded completely. Each rollout takes over from
what the one before left.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.rollout_fixtures import Place, live_requests, make_double, place, use_doubles
from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.gateway.canary.traffic import read_traffic
from trt_mtp.controller.rollout import control as rollout_control
from trt_mtp.controller.rollout.plan import named_variant
from trt_mtp.controller.rollout.spec import read_spec
from trt_mtp.controller.rollout.store import Phase, Rollout, Store
from trt_mtp.controller.rollout.triton import sites
from trt_mtp.serve.repository import loaded_models

GATES = {"window_s": 0.25, "min_requests": 1, "probe_timeout_s": 5.0}
STEPS = [{"set_weight": 50, "at_least_s": 0.1, "at_most_s": 60}]
MAX_CALLS = 5


class CountingStore(Store):
    """A store whose process is killed at a point of its record."""

    kill_at = -1  # -1: never
    num_points = 0

    def begin(self, name: str, digest: str, facts: dict[str, Any]) -> Rollout:
        """Killed before or after it, perhaps."""
        self._point()
        begun = super().begin(name, digest, facts)
        self._point()
        return begun

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Killed before or after it, perhaps."""
        self._point()
        super().record(*args, **kwargs)
        self._point()

    def _point(self) -> None:
        if CountingStore.num_points == CountingStore.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        CountingStore.num_points += 1


def child(file: Path, kill_at: int) -> None:
    """Call `rollout start` in this process; prints the number of points that were passed."""
    use_doubles()
    CountingStore.kill_at = kill_at
    rollout_control.Store = CountingStore  # type: ignore[attr-defined]
    status = rollout_control.start(read_spec(file), lambda text: None)
    print(CountingStore.num_points)
    sys.exit(status.exit_code)


def call(file: Path, kill_at: int = -1) -> tuple[int, int]:
    """`rollout start` in a process of its own: its exit code, and the points it passed."""
    command = [sys.executable, "-m", "benchmarks.rollout_crash", "--child", str(file)]
    done = subprocess.run(
        [*command, "--kill-at", str(kill_at)], stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, int(done.stdout or 0)


@dataclass(slots=True)
class Counts:
    """What `--json` prints."""

    points: int = 0
    same_state: int = 0  # as without the kill
    rolled_back: int = 0  # the state before, where the rollout would have succeeded
    bad: int = 0
    requests: int = 0
    requests_lost: int = 0


@dataclass(slots=True)
class Crashes:
    """Rollouts one after the other, at one place."""

    place: Place
    counts: Counts
    builds: Iterator[EngineVariant]  # one that is not served now, each time
    numbers: Iterator[int]

    def run(self, step: int) -> None:
        """Kill one at each of its points, or at every `step`th."""
        file, before, after = self._next()
        code, num_points = call(file)
        self.counts.bad += (code, self._served(file)) != (self._ending(file), after)
        for point in range(0, num_points, step):
            file, before, after = self._next()
            self._kill(file, point, before, after)

    def _kill(self, file: Path, point: int, before: set[str], after: set[str]) -> None:
        self.counts.points += 1
        code, _ = call(file, point)
        if code != -signal.SIGKILL:
            print(f"point {point} was not reached: exit code {code}", file=sys.stderr)
        for _ in range(MAX_CALLS):
            code, _ = call(file)
            if code != 3:
                break
        served = self._served(file)
        is_done = code == self._ending(file)
        self.counts.same_state += is_done and served == after
        self.counts.rolled_back += is_done and served == before != after
        if not is_done or served not in (before, after):
            self.counts.bad += 1
            print(f"point {point}: exit code {code}, served {sorted(served)}", file=sys.stderr)

    def _next(self) -> tuple[Path, set[str], set[str]]:
        """The file of the next rollout, what is served before it and what should be after it."""
        variant, number = next(self.builds), next(self.numbers)
        stable = self._stable()
        old = next(name for name in stable if name != "k0")
        file = self.place.spec(variant.folder, old, name=f"r{number}", gates=GATES, steps=STEPS)
        is_bad = (variant.folder / "double.json").read_text().find("first_token") >= 0
        new = {"k0", old if is_bad else named_variant(variant.folder).name}
        return file, set(stable), new

    def _stable(self) -> Sequence[str]:
        file = self.place.folder / "traffic.json"
        return read_traffic(file).stable.variants if file.exists() else ("k0", "k3")

    def _ending(self, file: Path) -> int:
        """The exit code of how the record says that it ended."""
        with Store(self.place.state) as store:
            rollout = store.latest(read_spec(file).name)
        phase = rollout.phase if rollout is not None else Phase.PENDING
        return rollout_control.EXIT_CODES[phase] if phase.is_completed else -1

    def _served(self, file: Path) -> set[str]:
        """The variants that are stable, loaded, and would be loaded again; else what differs."""
        spec = read_spec(file)
        traffic = read_traffic(spec.where.gateways[0].traffic)
        with sites(spec.where.servers, spec.where.model) as (site,):
            prefix = f"{spec.where.model}_"
            ready = {m.removeprefix(prefix) for m, s in site.states().items() if s == "READY"}
            kept = {m.removeprefix(prefix) for m in loaded_models(site.repository)} or ready
        stable = set(traffic.stable.variants)
        is_clean = traffic.canary is None and ready == kept == stable
        return stable if is_clean else {"inconsistent", *(stable ^ ready), *(stable ^ kept)}


def alternating(folder: Path, **manners: Any) -> Iterator[EngineVariant]:
    """Two builds of K = 3 by turns, so that one is always new."""
    builds = [make_double(folder / name, 3, load_s=0.1, build=name, **manners) for name in "ab"]
    return itertools.cycle(builds)


def measure(step: int) -> Counts:
    """Both rollouts; every `step`th point."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = [make_double(folder / "engines", length) for length in (0, 3)]
        with place(folder, served) as here:
            with live_requests(here.gateway, num_clients=3) as seen:
                numbers = itertools.count()
                for manners in ({}, {"first_token": 9}):
                    builds = alternating(folder / f"builds{len(manners)}", **manners)
                    Crashes(here, counts, builds, numbers).run(step)
            half = sum("half-loaded" in answer for answer in seen.answers)
            counts.requests = len(seen.answers) + len(seen.errors)
            counts.requests_lost = len(seen.errors) + half
            for error in seen.errors[:10]:
                print(error, file=sys.stderr)
    return counts


def main() -> None:
    """Run it and print the counts; exit code 1 when something is bad or lost."""
    parser = argparse.ArgumentParser(description="Rollouts that are killed everywhere.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="every ninth point")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.kill_at)
    counts = measure(9 if options.short else 1)
    values = asdict(counts)
    text = json.dumps({"schema_version": 1, **values})
    print(text if options.json else "\n".join(f"{key} {value}" for key, value in values.items()))
    sys.exit(1 if counts.bad or counts.requests_lost else 0)


if __name__ == "__main__":
    main()
