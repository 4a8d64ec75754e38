"""A plan in words: the reason, the table, and what to expect when something changes."""

from collections.abc import Iterator, Mapping

from trt_mtp.controller.plan.check import Spread
from trt_mtp.controller.plan.groups import Fleet
from trt_mtp.controller.plan.modes import Mode
from trt_mtp.controller.plan.plan import SHIFT, Plan


def reason(plan: Plan) -> str:
    """Why this fleet, in a sentence or two."""
    text = _mixed_reason(plan) if plan.is_mixed else _single_reason(plan)
    if plan.deployment.prior:
        text += f". The numbers are {plan.deployment.prior}: calibrate before you rely on them"
    return text


def _single_reason(plan: Plan) -> str:
    mode = plan.fleet.groups[0].mode
    if mode.schedule is not None:
        best = plan.best_single.fleet
        over = f"{_percent(1 - plan.cost / (plan.best_single.cost or plan.cost))} over {_of(best)}"
        saved = f"it saves {over}" if best is not None else "no single draft length holds them all"
        return f"one variant with a {mode.name}, no router: {saved}"
    gain = f"a mix of lengths saves {_percent(plan.router_gain)}, and a second variant needs 2%"
    if plan.router_gain == 0:
        gain = "no mix of lengths is more than 2% cheaper"
    return f"one variant, {mode.name}, no router: {gain}"


def _mixed_reason(plan: Plan) -> str:
    lengths = sorted({group.mode.draft_length for group in plan.fleet.groups})
    names = " and ".join(f"K = {length}" for length in lengths)
    best = plan.best_single.fleet
    if best is None:
        return (
            f"a router over {names}: no single draft length holds the targets of all tasks with "
            f"{plan.wishes.gpus} of {plan.deployment.machine}"
        )
    return f"a router over {names} saves {_percent(plan.router_gain)} over {_of(best)}"


def _of(fleet: Fleet | None) -> str:
    if fleet is None:
        return "nothing"
    count = fleet.num_replicas
    return f"the best single length ({fleet.groups[0].mode.name}, {_replicas(count)})"


def _replicas(count: float) -> str:
    return f"{count:g} replica{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < abs(share) < 0.1 else f"{share:.0%}"


def to_text(plan: Plan) -> str:
    """The plan for a terminal."""
    lines = [_head(plan), "", *_groups(plan), "", *_alternatives(plan), "", *_tasks(plan.tasks), ""]
    return "\n".join([*lines, *outlook(plan)])


def _head(plan: Plan) -> str:
    deployment = plan.deployment
    gpus = plan.fleet.num_replicas * deployment.gpus_per_replica
    text = reason(plan)
    return f"{deployment.name}: {gpus} of {deployment.machine}.\n{text[0].upper()}{text[1:]}."


def _groups(plan: Plan) -> Iterator[str]:
    yield f"{'replicas':>8}  {'held at batch':>13}  draft length"
    for group in plan.fleet.groups:
        yield f"{group.count:>8}  {group.mode.batch:>13}  {group.mode.name}"


def _alternatives(plan: Plan) -> Iterator[str]:
    yield f"{'':<22}{'cost':>9}"
    yield f"{'this plan':<22}{plan.cost:>9g}"
    for name, (fleet, cost) in (
        ("best single length", plan.best_single), ("schedule everywhere", plan.schedule_everywhere),
    ):  # fmt: skip
        shown = f"{cost:>9g}  {fleet.groups[0].mode.name}" if fleet is not None else f"{'none':>9}"
        yield f"{name:<22}{shown}"


def _tasks(tasks: Mapping[str, tuple[Spread, Spread]]) -> Iterator[str]:
    yield f"{'ms':<20}{'TPOT p50':>10}{'p99':>8}{'TTFT p50':>10}{'p99':>8}"
    for task, (tpot, ttft) in tasks.items():
        yield f"{task:<20}{tpot.p50:>10.1f}{tpot.p99:>8.1f}{ttft.p50:>10.0f}{ttft.p99:>8.0f}"


def outlook(plan: Plan) -> Iterator[str]:
    """What more traffic, another mix, a lost replica and the present fleet mean; a line each."""
    yield f"Headroom: {plan.headroom:.0%} more traffic of this mix."
    if plan.shifts and plan.shifts[0].num_replicas > plan.fleet.num_replicas:
        worst = plan.shifts[0]
        yield (
            f"If {SHIFT:.0%} of the requests turn to {worst.task}, "
            f"one draft length takes {_replicas(worst.num_replicas)}."
        )
    elif plan.shifts:
        yield f"{SHIFT:.0%} of the requests may turn to any one task."
    carried = plan.after_loss
    if plan.wishes.spare or carried >= 1:
        yield "With a replica lost the targets hold."
    else:
        yield f"With a replica lost, {carried:.0%} of this traffic keeps its targets."
    yield from changes(plan)


def changes(plan: Plan) -> Iterator[str]:
    """What to add and to take away, if the present fleet is known."""
    present = plan.wishes.present
    if present is None:
        return
    wanted = by_length(plan.fleet)
    parts = []
    for length in sorted({*present, *wanted}):
        more = wanted.get(length, 0) - present.get(length, 0)
        if more:
            verb = "add" if more > 0 else "remove"
            parts.append(f"{verb} {_replicas(abs(more))} of K = {length}")
    yield f"From the present fleet: {', '.join(parts) or 'nothing to change'}."


def by_length(fleet: Fleet) -> dict[int, int]:
    """Replicas by draft length."""
    counts: dict[int, int] = {}
    for group in fleet.groups:
        length = group.mode.draft_length
        counts[length] = counts.get(length, 0) + group.count
    return counts


def variant_name(mode: Mode, modes: list[Mode]) -> str:
    """`k3`, or `k3-b8` where another group has the same length."""
    same = [other for other in modes if other.draft_length == mode.draft_length]
    return f"k{mode.draft_length}" + (f"-b{mode.batch}" if len(same) > 1 else "")
