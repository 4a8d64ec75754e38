"""A profile of a deployment that nobody measured: the roofline of its GPU and model."""

from collections.abc import Sequence
from dataclasses import asdict

from trt_mtp.build.gpus import Gpu
from trt_mtp.build.released_models import ReleasedModel
from trt_mtp.controller.profile import ContextPrice, Profile
from trt_mtp.controller.roofline import Roofline

TYPICAL_CONTEXT = 1024  # tokens of a request in flight
# SD of the error of log R(3, B): kernels differ from the data sheet alike at all lengths, so R is
# known better than the time of a step; an allowance, chosen here
ROOFLINE_RATIO = 0.15


def prior_profile(
    model: ReleasedModel, gpu: Gpu, draft_lengths: Sequence[int], tensor_parallel: int = 1
) -> Profile:
    """The step times of `draft_lengths` by the roofline, and the published acceptance.

    It has no fingerprint, so it fits any deployment: what it says is for the user to know.
    """
    roofline = Roofline(model.shape, gpu, tensor_parallel, state_dtype=model.state_dtype)
    drafting = tuple(k for k in draft_lengths if k > 0)
    table = roofline.step_cost(drafting, TYPICAL_CONTEXT)
    return Profile(
        plain_step_s=dict(table.plain_step_s),
        step_ratio={k: dict(curve) for k, curve in table.ratios.items()},
        step_ratio_deviation=ROOFLINE_RATIO,
        context_cost=ContextPrice(**asdict(table.context)),
        prefill_tokens_per_s=roofline.prefill_tokens_per_s(),
        notes=(
            f"a prior, not a measurement: the roofline of {tensor_parallel} x {gpu.name} for "
            f"{model.name} in {model.precision} at {TYPICAL_CONTEXT} tokens a request, and "
            "published acceptance"
        ),
    )
