"""Does the simulated fleet, which jumps from event to event, agree with an engine run step by step?

`python -m benchmarks.prefill [--json] [--short]`

The engine runs every step: each is filled up to 2,048 tokens with the prompts that wait, and takes
as long as the roofline of an H100 says for all rows of the pass. The fleet knows the table of step
times and the speed of prefill alone. Prompts take none, a quarter or a half of the time that they
would take by themselves. Shown is a user's speed (output tokens over the whole time, median) of the
fleet over the engine's, without prompts as the simulator was before, and with them; and by how much
that shifts the speedup of K = 3 over no speculation. Aimed at: within 5 %.
"""

import heapq
import random
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from benchmarks._report import arguments, print_report
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.prior_profile import TYPICAL_CONTEXT
from trt_mtp.controller.roofline import Roofline
from trt_mtp.controller.simulate.fleet import CHUNK, Fleet, InFlight
from trt_mtp.controller.simulate.workload import (
    MIXES,
    SimulatedRequest,
    Workload,
    published_cost,
)

DENSE, SPARSE = "qwen3.8-27b-fp8", "qwen3.6-35b-a3b-fp8"
# model, prompt tokens, share of the time that prefill would take; the sparse model reads prompts so
# fast that at 2,000 tokens more of them would ask for more answers than it can give
CASES = (
    *((DENSE, tokens, share) for tokens in (2000, 8000) for share in (0.25, 0.49)),
    *((SPARSE, tokens, share) for tokens, share in ((2000, 0.05), (2000, 0.1), (8000, 0.25))),
    (DENSE, 0, 0.0),
    (SPARSE, 0, 0.0),
)
LENGTHS = (0, 3)
OUTPUT_PER_S = 400.0  # tokens that are asked for where there are no prompts
MAX_BATCH_SIZE = 256
WARM_UP = 0.1  # of the requests

Arrivals = Sequence[tuple[float, SimulatedRequest]]


@dataclass(frozen=True)
class Machine:
    """One engine's times."""

    roofline: Roofline

    @cache  # noqa: B019 - a benchmark ends
    def step_s(self, draft_length: int, batch: int, prompt_tokens: int) -> float:
        """Seconds of a step."""
        length = draft_length if batch else 0
        context = batch * TYPICAL_CONTEXT
        return self.roofline.step_s(length, batch, context, prompt_tokens)


def by_steps(machine: Machine, draft_length: int, arrivals: Arrivals) -> list[float]:
    """Each request's seconds on an engine that is run step by step, in order of arrival."""
    due, waiting = deque(enumerate(arrivals)), deque[list[int]]()  # [request, tokens unread]
    running: list[tuple[int, int]] = []  # heap of (last step, request)
    now, step, took = 0.0, 0, [0.0] * len(arrivals)
    while due or waiting or running:
        if not waiting and not running:
            now = max(now, due[0][1][0])
        while due and due[0][1][0] <= now:
            number, (_, request) = due.popleft()
            waiting.append([number, request.prompt_tokens or 0])
        room, read = CHUNK - len(running) * (draft_length + 1), 0
        ready: list[int] = []
        while waiting and room >= 0 and len(running) + len(ready) < MAX_BATCH_SIZE:
            part = min(room, waiting[0][1])
            waiting[0][1] -= part
            room, read = room - part, read + part
            if waiting[0][1]:
                break
            ready.append(waiting.popleft()[0])
        if running or read:
            now += machine.step_s(draft_length, len(running), read)
            step += 1
        for number in ready:
            request = arrivals[number][1]
            steps = max(1, round(request.num_tokens / request.lengths[draft_length]))
            heapq.heappush(running, (step + steps, number))
        while running and running[0][0] <= step:
            _, number = heapq.heappop(running)
            took[number] = now - arrivals[number][0]
    return took


def by_events(
    machine: Machine, draft_length: int, arrivals: Arrivals, has_prompts: bool
) -> list[float]:
    """The same in the simulator."""
    rate = machine.roofline.prefill_tokens_per_s()
    cost = machine.roofline.step_cost(LENGTHS[1:], TYPICAL_CONTEXT)
    fleet = Fleet([draft_length], cost, MAX_BATCH_SIZE, chunk_s=CHUNK / rate)
    ended: list[tuple[float, InFlight]] = []
    for at, request in arrivals:
        ended += fleet.finished_until(at)
        prefill_s = (request.prompt_tokens or 0) / rate if has_prompts else 0.0
        short = replace(request, prompt_tokens=None)  # contexts are the table's in both
        flight = InFlight(short, at, draft_length, None, prefill_s=prefill_s)
        fleet.submit(fleet.least_loaded(draft_length), flight, at)
    ended += fleet.finished_until(float("inf"))
    return [end - flight.arrived_at for end, flight in sorted(ended, key=lambda e: e[1].arrived_at)]


def drawn(prompt_tokens: int, rate_per_s: float, num: int) -> Arrivals:
    """Poisson arrivals of mix "chat" with prompts of this length."""
    workload, chance = Workload(published_cost(), 1), random.Random(1)
    now, found = 0.0, []
    for _ in range(num):
        now += chance.expovariate(rate_per_s)
        request = workload.draw(MIXES["chat"])
        found.append((now, replace(request, prompt_tokens=prompt_tokens or None)))
    return found


def rig(model: str) -> Machine:
    """The machine."""
    return Machine(Roofline(find_model(model).shape, find_gpu("h100-80gb")))


def speed(arrivals: Arrivals, took: Sequence[float]) -> float:
    """A user's output tokens per second, median."""
    each = [request.num_tokens / s for (_, request), s in zip(arrivals, took, strict=True)]
    return statistics.median(each[int(WARM_UP * len(each)) :])


def rows(num: int) -> Iterator[dict[str, Any]]:
    """The table."""
    for model, prompt_tokens, share in CASES:
        machine = rig(model)
        rate = OUTPUT_PER_S / 250
        if prompt_tokens:
            rate = share * machine.roofline.prefill_tokens_per_s() / prompt_tokens
        arrivals = drawn(prompt_tokens, rate, num)
        took = {
            "engine": [by_steps(machine, k, arrivals) for k in LENGTHS],
            "before": [by_events(machine, k, arrivals, False) for k in LENGTHS],
            "now": [by_events(machine, k, arrivals, True) for k in LENGTHS],
        }
        speeds = {name: [speed(arrivals, t) for t in each] for name, each in took.items()}
        case = {"model": model, "prompt_tokens": prompt_tokens, "share": share}
        yield case | _compared(speeds)


def _compared(speeds: dict[str, list[float]]) -> dict[str, Any]:
    plain, drafting = speeds["engine"]
    found: dict[str, Any] = {"tokens_per_s": [round(plain, 1), round(drafting, 1)]}
    for name in ("before", "now"):
        own = speeds[name]
        found[name] = [round(own[0] / plain, 3), round(own[1] / drafting, 3)]
        found[f"speedup_{name}"] = round(own[1] / own[0] / (drafting / plain), 3)
    return found


def main() -> None:
    """Print the table."""
    options = arguments("The simulator against an engine run step by step.", "fewer requests")
    table = list(rows(600 if options.short else 2000))
    lines = [f"{'':<31}{'engine, tok/s':>15}{'before / engine':>19}{'now / engine':>17}"
             f"{'speedup of K=3':>17}",
             f"{'model':<21}{'prompt':>6}{'':>4}{'K=0':>8}{'K=3':>7}{'K=0':>11}{'K=3':>8}"
             f"{'K=0':>10}{'K=3':>7}{'before':>10}{'now':>7}"]  # fmt: skip
    for r in table:
        lines.append(
            f"{r['model']:<21}{r['prompt_tokens']:>6}{r['share']:>4.0%}"
            f"{r['tokens_per_s'][0]:>8.1f}{r['tokens_per_s'][1]:>7.1f}"
            f"{r['before'][0]:>11.2f}{r['before'][1]:>8.2f}{r['now'][0]:>10.3f}{r['now'][1]:>7.3f}"
            f"{r['speedup_before']:>10.3f}{r['speedup_now']:>7.3f}"
        )
    print_report(options.json, {"rows": table}, lines)


if __name__ == "__main__":
    main()
