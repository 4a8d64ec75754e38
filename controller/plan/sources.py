"""What PROFILE|MODEL stands for: a file, the published rig, or a released model."""

from collections.abc import Sequence
from pathlib import Path

from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.released_models import find_model
from trt_mtp.controller.plan.deployment import (
    Deployment,
    from_model,
    from_profile,
    require_machine,
)
from trt_mtp.controller.plan.traffic import Traffic
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.errors import InputError

PUBLISHED = "published"  # the composite rig of profile.py


def deployment_of(
    name: str, traffic: Traffic, gpu: str | None, tensor_parallel: int | None,
    draft_lengths: Sequence[int],
) -> Deployment:  # fmt: skip
    """The deployment called `name`.

    Raises InputError for a name that is none, a profile of another GPU, a model without a GPU, and
    one that doesn't fit.
    """
    known = find_gpu(gpu) if gpu is not None else None
    is_file = Path(name).suffix == ".json" or Path(name).is_file()
    if name != PUBLISHED and not is_file:
        model = find_model(name)
        if known is None:
            raise InputError(f"{name}: a model by name needs --gpu, such as h100-80gb")
        return from_model(model, known, traffic, draft_lengths, tensor_parallel)
    if tensor_parallel is not None:
        raise InputError(f"--tp {tensor_parallel}: {name} was measured as it is; leave --tp out")
    profile = Profile() if name == PUBLISHED else read_profile(Path(name))
    return from_profile(profile, name, require_machine(profile, name, known), traffic)
