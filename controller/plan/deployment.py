"""The deployment that a plan is for: what a step costs, what drafts gain, what fits in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trt_mtp.build.gpus import Gpu, gpu_by_product_name
from trt_mtp.build.memory import MemoryPlan, estimate, largest_batch
from trt_mtp.build.released_models import ReleasedModel
from trt_mtp.controller.acceptance import (
    AcceptanceKey,
    AcceptanceLearner,
    prior_conditionals,
    temperature_band,
)
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.plan.traffic import Traffic, total_rate
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile
from trt_mtp.controller.roofline import Roofline
from trt_mtp.errors import InputError

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # that a plan may hold
LONGEST = 4  # times the mean length of a request that each slot has memory for
PUBLISHED = "a composite of published rigs, not a measurement"
PREFILL_TOKENS = 8192  # TorchLlmArgs.max_num_tokens' default


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model on one kind of machine; a replica takes `gpus_per_replica` of them."""

    name: str
    machine: str
    cost: StepCost  # at the mean context of the traffic
    prefill_tokens_per_s: float
    conditionals: Mapping[str, tuple[float, ...]]  # c_1 … c_8 by task, see acceptance.py
    batches: Mapping[int, tuple[int, ...]]  # by draft length: those that fit, ascending
    gpus_per_replica: int = 1
    prior: str = ""  # what its numbers are if none was measured; empty for a calibration

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """The draft lengths that fit, ascending."""
        return tuple(sorted(self.batches))

    def lengths(self, task: str) -> tuple[float, ...]:
        """AL(0) … AL(8) of a task's mean request."""
        return acceptance_lengths(self.conditionals[task])


def from_profile(profile: Profile, name: str, machine: str, traffic: Traffic) -> Deployment:
    """A calibrated deployment; batches beyond the largest one measured are not planned with.

    A profile says neither how large the model is nor what memory the machine has: what it was
    measured at did fit.
    """
    measured = profile.step_cost()
    most = max(batch for batch, _ in measured.plain_step_s)
    sizes = tuple(batch for batch in BATCHES if batch <= most)
    lengths = (0, *sorted(profile.step_ratio))
    cost = _at_context(measured, mean_context(traffic)) if profile.context_cost else measured
    is_published = "step_ratio" not in profile.model_fields_set
    return Deployment(
        name=name,
        machine=machine,
        cost=cost,
        prefill_tokens_per_s=profile.prefill_tokens_per_s,
        conditionals=learned_conditionals(profile, traffic),
        batches=dict.fromkeys(lengths, sizes),
        gpus_per_replica=int(profile.measured_on.get("device_count", "1")),
        prior=PUBLISHED
        if is_published
        else profile.notes
        if profile.notes[:7] == "a prior"
        else "",
    )


def _at_context(cost: StepCost, context_tokens: float) -> StepCost:
    """The same costs, in a table for requests that have `context_tokens` each."""
    lengths = sorted(cost.ratios)
    knots = sorted(
        {batch for curve in (cost.plain_step_s, *cost.ratios.values()) for batch, _ in curve}
    )
    # what contexts add is linear in the batch and not, as the table, in its logarithm
    batches = sorted({*knots, *(batch for batch in BATCHES if batch < knots[-1])})
    plain = {b: cost.step_s(0, b, b * context_tokens) for b in batches}
    ratios = {
        k: tuple((b, cost.step_s(k, b, b * context_tokens) / plain[b]) for b in batches)
        for k in lengths
    }
    context = replace(cost.context, at_tokens=context_tokens)
    return StepCost(tuple(plain.items()), ratios, cost.ratio_deviation, context)


def require_machine(profile: Profile, name: str, gpu: Gpu | None) -> str:
    """The machine that a profile is of; raises InputError if `gpu` is another one."""
    device = profile.measured_on.get("device", "")
    known = gpu_by_product_name(device)
    if gpu is not None and device and gpu.name not in (device, known.name if known else ""):
        raise InputError(
            f"{name} was measured on {device}, not on {gpu.name}: calibrate there, or plan by the "
            "model's name"
        )
    return gpu.name if gpu is not None else device or "machine"


def learned_conditionals(profile: Profile, traffic: Traffic) -> dict[str, tuple[float, ...]]:
    """The conditionals of each task as a gateway that starts with `profile` expects them."""
    learner = AcceptanceLearner(profile.priors(), decay_ratio=profile.decay_ratio)
    learner.merge(profile.learned())
    band = temperature_band(profile.calibration.temperature if profile.calibration else 0.0)
    return {
        task: _conditionals(learner.estimate(AcceptanceKey(task, band, False)).lengths)
        for task in traffic
    }


def _conditionals(lengths: Sequence[float]) -> tuple[float, ...]:
    survival = [1.0, *(b - a for a, b in pairwise(lengths))]
    return tuple(b / a if a > 0 else 0.0 for a, b in pairwise(survival))


def from_model(
    model: ReleasedModel,
    gpu: Gpu,
    traffic: Traffic,
    draft_lengths: Sequence[int],
    tensor_parallel: int | None = None,
) -> Deployment:
    """A deployment that nobody measured: the roofline prior, and published acceptance.

    Without `tensor_parallel` a replica takes the fewest GPUs that hold it. Raises InputError if
    none of the draft lengths fits.
    """
    wanted = _memory_plan(model, traffic)
    sizes = wanted.shape.parallel_sizes if tensor_parallel is None else (tensor_parallel,)
    for size in sizes:
        plan = replace(wanted, tensor_parallel=size)
        batches = {k: _fitting(plan, k, gpu) for k in draft_lengths}
        if all(batches.values()) or (tensor_parallel is not None and any(batches.values())):
            break
    else:
        raise InputError(_too_large(model, gpu, wanted, sizes))
    prior = Roofline(model.shape, gpu, size, state_dtype=model.state_dtype)
    return Deployment(
        name=f"{model.name} in {model.precision.upper()}",
        machine=gpu.name,
        cost=prior.step_cost(tuple(draft_lengths), mean_context(traffic)),
        prefill_tokens_per_s=prior.prefill_tokens_per_s(),
        conditionals={task: prior_conditionals(PUBLISHED_ACCEPTANCE[task]) for task in traffic},
        batches={k: fitting for k, fitting in batches.items() if fitting},
        gpus_per_replica=size,
        prior="a roofline prior from data sheets and published acceptance, not a measurement",
    )


def mean_context(traffic: Traffic) -> float:
    """Tokens in the cache of a request in flight: its prompt and half its answer.

    Weighted by output tokens, which is how long requests stay.
    """
    weights = {t: one.requests_per_s * one.output_tokens for t, one in traffic.items()}
    total = sum(weights.values())
    return sum(
        weights[task] * (one.prompt_tokens + one.output_tokens / 2) for task, one in traffic.items()
    ) / total  # fmt: skip


def _memory_plan(model: ReleasedModel, traffic: Traffic) -> MemoryPlan:
    rate = total_rate(traffic)
    mean = sum(
        one.requests_per_s * (one.prompt_tokens + one.output_tokens) for one in traffic.values()
    )
    longest = max(one.prompt_tokens + one.output_tokens for one in traffic.values())
    return MemoryPlan(
        shape=model.shape,
        draft_length=0,
        max_batch_size=1,
        max_seq_len=min(round(max(longest, mean / rate) * LONGEST), model.shape.context_length),
        max_num_tokens=PREFILL_TOKENS,
        state_dtype=model.state_dtype,
    )


def _fitting(plan: MemoryPlan, draft_length: int, gpu: Gpu) -> tuple[int, ...]:
    """The batches at which as many requests of the mean length as slots fit into the cache."""
    average = plan.max_seq_len // LONGEST + 1
    fitting = []
    for batch in BATCHES:
        tokens = max(plan.max_num_tokens, batch * (draft_length + 1))
        sized = replace(
            plan, draft_length=draft_length, max_batch_size=batch, max_num_tokens=tokens
        )
        memory = estimate(sized, gpu)
        if not memory.fits or memory.kv_cache_tokens < batch * average:
            break
        fitting.append(batch)
    return tuple(fitting)


def _too_large(model: ReleasedModel, gpu: Gpu, plan: MemoryPlan, sizes: Sequence[int]) -> str:
    needed = estimate(replace(plan, tensor_parallel=sizes[-1]), gpu)
    total = (needed.before_kv_cache + plan.max_seq_len * needed.kv_cache_per_token) / 1e9
    wider = [
        size for size in model.shape.parallel_sizes
        if size > sizes[-1] and largest_batch(replace(plan, tensor_parallel=size), gpu)
    ]  # fmt: skip
    advice = (
        f"give --tp {wider[0]}" if wider else "use GPUs with more memory or a smaller precision"
    )
    return (
        f"{model.name} in {model.precision.upper()} needs about {total:.0f} GB on each of "
        f"{sizes[-1]} GPUs and {gpu.name} has {gpu.memory_bytes / 1e9:.0f} GB: {advice}"
    )
