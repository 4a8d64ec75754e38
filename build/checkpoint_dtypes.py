"""The types of a checkpoint's weights, states and KV cache, as TensorRT-LLM will have them."""

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.memory import BYTES_PER_VALUE
from trt_mtp.errors import InputError


def state_dtype(checkpoint: Checkpoint) -> str:
    """The type of Gated-DeltaNet's states; raises InputError for one that is none."""
    value = checkpoint.text_config.get("mamba_ssm_dtype")
    if value is None:
        return "float32"
    if not isinstance(value, str) or value not in BYTES_PER_VALUE:
        known = ", ".join(sorted(BYTES_PER_VALUE))
        raise InputError(
            f"{checkpoint.path}: mamba_ssm_dtype in config.json is {value!r:.60}: expected one of "
            f"{known}"
        )
    return value


def checkpoint_dtype(checkpoint: Checkpoint) -> str:
    """bf16, fp8, nvfp4, or the method's own name.

    NVIDIA's NVFP4 exports call themselves MIXED_PRECISION; what their tensors are decides then.
    """
    if checkpoint.quantization is None:
        return "bf16"
    method = checkpoint.quantization.method
    for known in ("nvfp4", "fp8"):
        if known in method:
            return known
    if "mixed" in method:
        dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
        return "nvfp4" if dtypes & {"U8", "F4"} else "fp8"
    return method


def cache_dtype(checkpoint: Checkpoint) -> str:
    """What a KV cache of type auto is: ModelOpt's kv_cache_quant_algo, or as the activations."""
    stated = checkpoint.quantization.kv_cache_dtype if checkpoint.quantization else None
    return stated if stated in ("fp8", "nvfp4") else "bfloat16"
