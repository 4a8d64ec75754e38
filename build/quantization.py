"""How a checkpoint is quantised, from config.json or ModelOpt's hf_quant_config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.build.tensors import TensorInfo
from trt_mtp.errors import InputError
from trt_mtp.files import read_json

HF_QUANT_CONFIG = "hf_quant_config.json"

# names of scales and the like that stand beside a quantised weight
NO_WEIGHTS = (
    "_scale", "_scale_2", "_scale_inv", "_global_scale", "_zero_point", "_shape",
    ".qzeros", ".scales", ".g_idx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantised format."""

    method: str  # fp8, nvfp4, mxfp4, gptq-int4, …
    tool: str  # what config.json calls quant_method, or "modelopt"
    source: str  # file that says so
    kv_cache_dtype: str | None
    excluded: tuple[str, ...]  # patterns of modules left as they were


def find_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """The quantisation stated in `folder`, None for a plain checkpoint.

    ModelOpt's own file is asked first, as TensorRT-LLM does.
    """
    own = folder / HF_QUANT_CONFIG
    if own.is_file():
        stated = read_json(own)
        inner = stated.get("quantization") if isinstance(stated, dict) else None
        if not isinstance(inner, dict):
            raise InputError(f"{own} has no key quantization, expected what ModelOpt writes")
        return from_modelopt(inner, HF_QUANT_CONFIG)
    stated = config.get("quantization_config")
    if stated is None:
        return None
    if not isinstance(stated, dict):
        raise InputError(f"{folder / 'config.json'}: quantization_config is not an object")
    if stated.get("quant_method") == "modelopt":
        return from_modelopt(stated.get("quantization") or stated, "config.json")
    return from_transformers(stated)


def from_modelopt(stated: Mapping[str, Any], source: str) -> Quantization | None:
    """ModelOpt's keys quant_algo, kv_cache_quant_algo, exclude_modules (in config.json: ignore)."""
    algorithm = stated.get("quant_algo")
    if not algorithm:
        return None
    kv_cache = stated.get("kv_cache_quant_algo")
    excluded = stated.get("exclude_modules") or stated.get("ignore") or ()
    return Quantization(
        method=str(algorithm).lower().replace("_", "-"),
        tool="modelopt",
        source=source,
        kv_cache_dtype=str(kv_cache).lower() if kv_cache else None,
        excluded=tuple(str(pattern) for pattern in excluded),
    )


def from_transformers(stated: Mapping[str, Any]) -> Quantization:
    """transformers' quantization_config: quant_method, and bits or a format where it has them."""
    tool = str(stated.get("quant_method", "unknown"))
    method = tool
    if stated.get("bits"):
        method = f"{tool}-int{stated['bits']}"
    elif tool == "compressed-tensors":
        method = str(stated.get("format", tool))
    excluded = stated.get("modules_to_not_convert") or stated.get("ignore") or ()
    return Quantization(
        method=method.removesuffix("-pack-quantized"),
        tool=tool,
        source="config.json",
        kv_cache_dtype=None,
        excluded=tuple(str(pattern) for pattern in excluded),
    )


def weights_in(name: str, info: TensorInfo, quantization: Quantization | None) -> int:
    """How many weights the tensor holds: packed ones counted singly, scales not at all."""
    if quantization is None:
        return math.prod(info.shape)
    if name.endswith(NO_WEIGHTS):
        return 0
    if info.dtype == "U8":  # two FP4 values in a byte
        return 2 * math.prod(info.shape)
    if info.dtype == "I32" and name.endswith((".qweight", ".weight_packed")):
        return math.prod(info.shape) * (4 if quantization.method.endswith("int8") else 8)
    return math.prod(info.shape)
