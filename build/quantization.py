"""How a checkpoint is quantised, from config.json or ModelOpt's hf_quant_config.json."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
PACKED = (".qweight", ".weight_packed")  # names of quantised weights
MAX_PATTERNS = 1 << 16  # characters of all patterns that are compared with modules
SMALL_TYPES = ("F8_", "F6_", "F4", "U8", "I8")  # what their types begin with


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantised format."""

    method: str  # fp8, nvfp4, mxfp4, gptq-int4, …
    tool: str  # what config.json calls quant_method, or "modelopt"
    source: str  # file that says so
    kv_cache_dtype: str | None
    excluded: tuple[str, ...]  # patterns of modules left as they were
    unloadable: str = ""  # why no known version of TensorRT-LLM loads it; empty if one does

    def excludes(self, module: str) -> bool:
        """Whether the module is left as it was, or that can't be told from the patterns alone."""
        if self.tool not in ("fp8", "modelopt") or self.method == "mixed-precision":
            return True
        return any(
            fnmatchcase(module, pattern) or f"{pattern}." in f"{module}."
            for pattern in self.excluded
        )


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
    stated = stated_quantization(config)
    if stated is None:
        return None
    if not isinstance(stated, dict):
        raise InputError(f"{folder / 'config.json'}: quantization_config is not an object")
    if stated.get("quant_method") == "modelopt":
        inner = stated.get("quantization")
        return from_modelopt(inner if isinstance(inner, dict) else stated, "config.json")
    return from_transformers(stated)


def stated_quantization(config: Mapping[str, Any]) -> Any:
    """quantization_config, which may be in text_config; None where there is none."""
    stated, nested = config.get("quantization_config"), config.get("text_config")
    if stated is None and isinstance(nested, dict):
        return nested.get("quantization_config")
    return stated


def check_agreement(
    folder: Path, tensors: Mapping[str, TensorInfo], quantization: Quantization | None
) -> None:
    """Raise InputError where a file says otherwise than the tensors whether they are quantised."""
    packed = next((name for name, info in tensors.items() if is_packed(name, info)), None)
    # a checkpoint whose KV cache alone is quantised has scales
    is_plain = packed is None and not any(name.endswith(NO_WEIGHTS) for name in tensors)
    if quantization is not None and is_plain:
        which = "the file" if quantization.source == HF_QUANT_CONFIG else "quantization_config"
        raise InputError(
            f"{folder / quantization.source} says that the weights are quantised "
            f"({quantization.method}), but all of them are plain, as after merging or "
            f"dequantising; remove {which}"
        )
    if quantization is None and packed is not None:
        info = tensors[packed]
        raise InputError(
            f"{info.file}: {packed} is {info.dtype}, a quantised weight, but config.json has no "
            f"quantization_config and there is no {HF_QUANT_CONFIG}; copy it from the checkpoint "
            f"that was quantised"
        )


def is_packed(name: str, info: TensorInfo) -> bool:
    """Whether the tensor holds quantised weights."""
    return info.dtype.startswith(SMALL_TYPES) or name.endswith(PACKED)


def from_modelopt(stated: Mapping[str, Any], source: str) -> Quantization | None:
    """ModelOpt's keys quant_algo, kv_cache_quant_algo, exclude_modules (in config.json: ignore)."""
    algorithm = stated.get("quant_algo")
    if not algorithm:
        return None
    kv_cache = stated.get("kv_cache_quant_algo")
    excluded = patterns(stated.get("exclude_modules") or stated.get("ignore"))
    return Quantization(
        method=str(algorithm).lower().replace("_", "-"),
        tool="modelopt",
        source=source,
        kv_cache_dtype=str(kv_cache).lower() if kv_cache else None,
        excluded=excluded,
    )


def from_transformers(stated: Mapping[str, Any]) -> Quantization:
    """transformers' quantization_config: quant_method, and bits or a format where it has them."""
    tool = str(stated.get("quant_method", "unknown"))
    method = tool
    if stated.get("bits"):
        method = f"{tool}-int{stated['bits']}"
    elif tool == "compressed-tensors":
        method = str(stated.get("format", tool))
    excluded = patterns(stated.get("modules_to_not_convert") or stated.get("ignore"))
    return Quantization(
        method=method.removesuffix("-pack-quantized"),
        tool=tool,
        source="config.json",
        kv_cache_dtype=None,
        excluded=excluded,
        unloadable=unloadable(tool, stated),
    )


def unloadable(tool: str, stated: Mapping[str, Any]) -> str:
    """What TensorRT-LLM's loader misses in a quantization_config, empty where it takes it.

    As load_hf_quant_config in tensorrt_llm/_torch/model_config.py (008e0af8) and
    tensorrt_llm/models/quant_config_utils.py (21156a7a) decide it.
    """
    if tool == "compressed-tensors":
        return unloadable_groups(stated.get("config_groups"))
    if tool == "fp8":
        block = stated.get("weight_block_size")
        if block is None and stated.get("activation_scheme") != "static":
            return "quant_method fp8 without weight_block_size"
        return "" if block in (None, [128, 128]) else f"weight_block_size {block!r:.40}"
    if tool in ("mxfp4", "mxfp8", "nvfp4"):
        return ""
    return f"quant_method {tool}"


def unloadable_groups(groups: Any) -> str:
    """The same for compressed-tensors, whose groups of modules each have a scheme."""
    if not isinstance(groups, dict) or not groups:
        return "compressed-tensors without config_groups"
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            return f"config_groups {name} without weights"
        bits, kind = weights.get("num_bits"), weights.get("type")
        if kind != "float" or bits not in (4, 8):
            return f"compressed-tensors of {bits!r:.20} bits of type {kind!r:.20}"
    return ""


def quantization_targets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that compressed-tensors' groups quantise, as `matches` takes them."""
    stated = stated_quantization(config)
    groups = stated.get("config_groups") if isinstance(stated, dict) else None
    if not isinstance(groups, dict):
        return ()
    return tuple(
        target
        for group in groups.values()
        for target in patterns(group.get("targets") if isinstance(group, dict) else None)
    )


def matches(module: str, stated: Iterable[str]) -> bool:
    """Whether compressed-tensors' patterns mean a linear module: its class, its name or an `re:`.

    >>> matches("mtp.fc", ["re:^mtp.*"]), matches("mtp.fc", ["lm_head", "mtp.fc_hidden"])
    (True, False)
    """
    for pattern in stated:
        if pattern in ("Linear", module):
            return True
        if pattern.startswith("re:"):
            try:
                if re.match(pattern.removeprefix("re:"), module):
                    return True
            except re.error:  # vLLM's to refuse
                continue
    return False


def are_costly(stated: Collection[str]) -> bool:
    """Whether `matches` could take without end: who made the checkpoint wrote the expressions.

    >>> are_costly([r"re:.*layers[.](0|1)[.].*_proj"]), are_costly(["re:(a+)+x"])
    (False, True)
    """
    repeats = (len(re.findall("[*+{]", pattern)) for pattern in stated)
    has_nested = any(re.search(r"\)[*+{]", pattern) for pattern in stated)
    return has_nested or max(repeats, default=0) > 4 or sum(map(len, stated)) > MAX_PATTERNS


def patterns(stated: Any) -> tuple[str, ...]:
    """A list of modules, or none."""
    return tuple(str(pattern) for pattern in stated) if isinstance(stated, list) else ()


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
