"""What does it cost to choose draft lengths without looking at how long the contexts are?

`python -m benchmarks.context [--json] [--short]`

The true step times are the roofline of an H100, where a verify step reads keys and values once, or
once for each of its rows. First, the speed lost on mix "chat" at long contexts by the length that
is best at 1,024 tokens, and by the one that the line through two long cells says (32,768 tokens,
one request in flight, draft lengths 0 and 5, times off by 1 %: medians of nine). Then a policy
that starts from the prior profile, while phases of 1,024 and of long contexts take turns:
throughput over the best static length of each phase, 500 requests left out. Last, how far off a
step's time is, by the load that it is filed under: that of the answer's beginning, or its mean.
"""

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks._report import arguments, print_report
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.context_cost import ContextCost
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.outcome import MeanLoad
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.prior_profile import TYPICAL_CONTEXT, prior_profile
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE
from trt_mtp.controller.roofline import Roofline
from trt_mtp.controller.simulate.fleet import Fleet, InFlight
from trt_mtp.controller.simulate.workload import MIXES, Workload

GPU = find_gpu("h100-80gb")
DENSE, SPARSE = "qwen3.8-27b-fp8", "qwen3.6-35b-a3b-fp8"
LENGTHS = (0, 1, 2, 3, 5)
CASES = ((DENSE, 32768, 16), (SPARSE, 131072, 4), (SPARSE, 131072, 16))  # model, tokens, in flight
LONG_CELL = 32768
PHASE = 50  # requests of one length of context
SEEDS = 9


def rig(model: str, reads_per_row: bool) -> Roofline:
    """The machine."""
    return Roofline(find_model(model).shape, GPU, reads_per_row=reads_per_row)


def best_length(step_s: dict[int, float]) -> int:
    """The length with the least time per token of mix "chat"."""
    return min(step_s, key=lambda k: seconds_per_token(k, step_s[k]))


def seconds_per_token(draft_length: int, step_s: float) -> float:
    """Of mix "chat"."""
    lengths = {
        t: acceptance_lengths(prior_conditionals(p)) for t, p in PUBLISHED_ACCEPTANCE.items()
    }
    return sum(share * step_s / lengths[t][draft_length] for t, share in MIXES["chat"].items())


def fitted(machine: Roofline, seed: int) -> ContextCost:
    """What two long cells say, whose times and those beside them are off by 1 %."""
    chance = random.Random(seed)

    def slope(draft_length: int) -> float:
        seen = [machine.step_s(draft_length, 1, c) * chance.lognormvariate(0, 0.01)
                for c in (TYPICAL_CONTEXT, LONG_CELL)]  # fmt: skip
        return max((seen[1] - seen[0]) / (LONG_CELL - TYPICAL_CONTEXT), 0.0)

    plain_s, drafting_s = slope(0), slope(5)
    return ContextCost(TYPICAL_CONTEXT, plain_s, max(drafting_s - plain_s, 0.0) / 5)


def static_loss(model: str, tokens: int, load: int, reads_per_row: bool) -> dict[str, Any]:
    """Speed lost by the choice at short contexts, and by the fitted line's."""
    machine = rig(model, reads_per_row)
    table = machine.step_cost(LENGTHS[1:], TYPICAL_CONTEXT)
    true = {k: machine.step_s(k, load, load * tokens) for k in LENGTHS}
    per_token = {k: seconds_per_token(k, true[k]) for k in LENGTHS}
    blind = best_length({k: table.step_s(k, load) for k in LENGTHS})
    losses = []
    for seed in range(SEEDS):
        cost = StepCost(table.plain_step_s, table.ratios, context=fitted(machine, seed))
        chosen = best_length({k: cost.step_s(k, load, load * tokens) for k in LENGTHS})
        losses.append(1 - min(per_token.values()) / per_token[chosen])
    return {
        "blind": round(1 - min(per_token.values()) / per_token[blind], 4),
        "with_context": round(statistics.median(losses), 4),
        "worst": round(max(losses), 4),
    }


def routed(
    model: str, tokens: int, load: int, reads_per_row: bool, has_price: bool, num: int
) -> float:
    """Throughput of a policy over that of the best static length in each kind of phase."""
    machine = rig(model, reads_per_row)
    profile = prior_profile(find_model(model), GPU, LENGTHS)
    price = profile.context_cost
    if price is not None and reads_per_row:  # as two long cells would tell
        price = price.model_copy(update={"draft_s": machine.context_cost(TYPICAL_CONTEXT).draft_s})
    policy = Policy(profile.model_copy(update={"context_cost": price if has_price else None}))
    table = machine.step_cost(LENGTHS[1:], TYPICAL_CONTEXT)
    workload = Workload(table)
    policy_s = [0.0, 0.0]
    static_s: list[dict[int, float]] = [defaultdict(float), defaultdict(float)]
    for i in range(num):
        is_long = i // PHASE % 2
        context = load * (tokens if is_long else TYPICAL_CONTEXT)
        request = workload.draw(MIXES["chat"])
        own = replace(request.features, num_prompt_tokens=context // load - 128)
        others = context - context / load
        hosted = [
            VariantState(f"k{k}", k, True, load - 1, 256, 1 << 20, context_tokens=others)
            for k in LENGTHS
        ]
        decision = policy.choose(own, hosted, now_s=0.0)
        steps = {k: request.num_tokens / request.lengths[k] for k in LENGTHS}
        seconds = {k: steps[k] * machine.step_s(k, load, context) for k in LENGTHS}
        if i >= 500:
            policy_s[is_long] += seconds[decision.draft_length]
            for k in LENGTHS:
                static_s[is_long][k] += seconds[k]
        took_s = seconds[decision.draft_length] * random.Random(i).lognormvariate(0, 0.03)
        policy.update(decision, workload.outcome(request, decision.draft_length, took_s))
    return sum(min(each.values()) for each in static_s) / sum(policy_s)


def filing(model: str, num: int) -> Iterator[dict[str, Any]]:
    """How far off the times in each bucket of load are, by what the answers are filed under."""
    machine = rig(model, False)
    cost = machine.step_cost((3,), TYPICAL_CONTEXT)
    workload, chance = Workload(cost, 1), random.Random(1)
    fleet = Fleet([3], cost)
    rate = 4 / (250 / 2.6 * cost.step_s(3, 4))  # about four in flight
    errors: dict[str, dict[int, list[float]]] = {n: defaultdict(list) for n in ("begin", "mean")}
    now, ended, at_begin = 0.0, list[tuple[float, InFlight]](), dict[int, int]()
    for _ in range(num):
        now += chance.expovariate(rate)
        ended += fleet.finished_until(now)
        replica = fleet.least_loaded(3)
        flight = InFlight(workload.draw(MIXES["chat"]), now, replica.load + 1, None)
        fleet.submit(replica, flight, now)
        at_begin[id(flight)] = replica.load
    ended += fleet.finished_until(math.inf)
    for at, flight in ended:
        step_s = (at - flight.started_at) / (flight.request.num_tokens / flight.request.lengths[3])
        assert isinstance(flight.mean_load, MeanLoad)
        for name, load in (("begin", at_begin[id(flight)]), ("mean", flight.mean_load.requests)):
            errors[name][round(math.log2(load))].append(math.log(step_s / cost.step_s(3, load)))
    for bucket in sorted(errors["begin"]):
        if min(len(errors[name][bucket]) for name in errors) >= 30:
            yield {"model": model, "load": 2**bucket} | {
                name: round(math.expm1(statistics.mean(errors[name][bucket])), 4) for name in errors
            }


def main() -> None:
    """Print the three tables."""
    options = arguments("What context costs.", "fewer requests")
    num = 1000 if options.short else 2000
    choices, routing = [], []
    for model, tokens, load in CASES:
        for per_row in (False, True):
            case = {"model": model, "tokens": tokens, "load": load, "reads_per_row": per_row}
            choices.append(case | static_loss(model, tokens, load, per_row))
            shares = {name: round(routed(model, tokens, load, per_row, has, num), 4)
                      for name, has in (("without", False), ("with", True))}  # fmt: skip
            routing.append(case | shares)
    filed = [row for model in (DENSE, SPARSE) for row in filing(model, 3 * num)]
    lines = ["speed lost: K by R at 1,024 tokens, and by two long cells (worst seed)"]
    lines += [
        f"{_name(r)}{r['blind']:>9.1%}{r['with_context']:>9.1%} ({r['worst']:.1%})" for r in choices
    ]
    lines += [
        "",
        "over the best static length per phase: policy without and with that price",
    ]
    lines += [f"{_name(r)}{r['without']:>9.3f}{r['with']:>9.3f}" for r in routing]
    lines += [
        "",
        "a step's time is off by: filed under the load at its beginning, and the mean",
    ]
    lines += [f"{r['model']:<22}{r['load']:>4}{r['begin']:>+9.1%}{r['mean']:>+9.1%}" for r in filed]
    values = {"choices": choices, "routing": routing, "filing": filed}
    print_report(options.json, values, lines)


def _name(row: dict[str, Any]) -> str:
    how = "each row" if row["reads_per_row"] else "once"
    return f"{row['model']:<22}{row['tokens'] // 1024:>4}k B={row['load']:<4}{how:<10}"


if __name__ == "__main__":
    main()
