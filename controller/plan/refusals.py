"""Why no fleet holds the targets, and what would: one sentence for each reason."""

from collections.abc import Mapping
from dataclasses import replace

from trt_mtp.controller.plan.check import simulate, slow_prompt
from trt_mtp.controller.plan.groups import Question
from trt_mtp.controller.plan.modes import Mode, Targets, make_mode, slow_lengths
from trt_mtp.controller.plan.sizing import mixed, single
from trt_mtp.errors import InputError

UNBOUNDED = 1_000_000  # replicas, to see what a fleet of any size does
ALONE = 0.02  # of a replica's slots are busy where requests hardly meet


def refuse(question: Question, gpus: int) -> InputError:
    """The error for a question that no fleet of `gpus` GPUs answers."""
    return _impossible(question) or _too_few(question, gpus)


def is_unreadable(question: Question) -> bool:
    """Whether reading a prompt alone takes longer than TTFT may, in more than one of a hundred."""
    target = question.targets.ttft_ms
    deployment = question.deployment
    return target is not None and any(
        1000 * slow_prompt(one) / deployment.prefill_tokens_per_s > target
        for one in question.traffic.values()
    )


def _impossible(question: Question) -> InputError | None:
    """A target that no number of GPUs meets; None if both can be."""
    targets = question.targets
    best = {k: _alone(question, k) for k in question.deployment.draft_lengths}
    for option, index, target in (
        ("--tpot-p99-ms", 0, targets.tpot_ms), ("--ttft-p99-ms", 1, targets.ttft_ms),
    ):  # fmt: skip
        if target is None:
            continue
        task, value, length = _reachable(best, index)
        if value > target:
            return InputError(
                f"{option} {target:g} can't be met for {task}: alone on a replica its 99th "
                f"percentile is {value:.3g} ms at best (K = {length}); ask for {_above(value)} or "
                "more, or use faster GPUs"
            )
    return None


def _alone(question: Question, length: int) -> Mapping[str, tuple[float, float]]:
    """The 99th percentiles of TPOT and TTFT by task, where requests hardly meet."""
    slow = slow_lengths(question.deployment, question.traffic)
    mode: Mode = make_mode(question.deployment, question.traffic, Targets(), length, 1, slow)
    flow = question.problem.rates
    busy = sum(rate * mode.busy_s[task] for task, rate in flow.items())
    count = max(round(busy / ALONE), 1)
    seen = simulate(question.deployment, question.traffic, mode, count, flow, question.seed)
    return {task: (tpot.p99, ttft.p99) for task, (tpot, ttft) in seen.spreads().items()}


def _reachable(
    best: Mapping[int, Mapping[str, tuple[float, float]]], index: int
) -> tuple[str, float, int]:
    """The task that is farthest from the target, its latency, and the length that is best there."""
    tasks = {task for by_task in best.values() for task in by_task}
    lowest = {
        task: min((best[k][task][index], k) for k in best if task in best[k]) for task in tasks
    }
    task = max(lowest, key=lambda name: lowest[name][0])
    value, length = lowest[task]
    return task, value, length


def _above(value: float) -> str:
    """A round number above `value`, with room for what waiting adds."""
    return f"{value * 1.1:.2g}" if value < 90 else f"{value * 1.1:.0f}"


def _too_few(question: Question, gpus: int) -> InputError:
    deployment = question.deployment
    wide = replace(question, problem=replace(question.problem, most=UNBOUNDED))
    every = [mixed(wide), *(single(wide, k) for k in deployment.draft_lengths)]
    fleets = [fleet for fleet in every if fleet is not None]
    targets = question.targets
    options = (("--tpot-p99-ms", targets.tpot_ms), ("--ttft-p99-ms", targets.ttft_ms))
    asked = [f"{option} {value:g}" for option, value in options if value is not None]
    held = f" within {' and '.join(asked)}" if asked else ""
    if not fleets:
        return InputError(
            f"no number of {deployment.machine} carries this traffic{held}: answers that meet "
            "prompts of others miss it; ask for more milliseconds, or use faster GPUs"
        )
    needed = min(fleet.num_replicas for fleet in fleets) * deployment.gpus_per_replica
    less = ", or allow more milliseconds" if asked else ", or send less"
    return InputError(
        f"--gpus {gpus} can't carry this traffic{held}: {needed} of {deployment.machine} do; give "
        f"--gpus {needed}{less}"
    )
