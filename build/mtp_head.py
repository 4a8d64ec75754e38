"""The MTP head of a checkpoint: which `mtp.*` tensors are there, and which should be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trt_mtp.build.tensor_names import MTP
from trt_mtp.build.tensors import TensorInfo

# What quantised checkpoints put beside or in place of `x.weight` (FP8 blocks, ModelOpt,
# compressed-tensors, GPTQ and AWQ).
COMPANIONS = (
    "weight", "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_packed",
    "weight_shape", "weight_zero_point", "weight_global_scale", "input_scale",
    "input_global_scale", "qweight", "qzeros", "scales", "g_idx",
)  # fmt: skip

ATTENTION = tuple(
    f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
)
NORMS = ("input_layernorm", "post_attention_layernorm")
MODULE = f"{MTP}layers.0.self_attn.o_proj"  # one that every family's head has, Flash-Next's aside
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class MtpHead:
    """The tensors that draft, as found and as expected for the family."""

    num_layers: int
    tensors: Mapping[str, TensorInfo]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(info.num_bytes for info in self.tensors.values())


def find_mtp_head(
    family: str, text_config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> MtpHead:
    """The MTP head among `tensors`, compared with what `family` needs.

    Names as in vLLM's qwen3_next_mtp.py and TensorRT-LLM's qwen3_5_weight_mapper.py.
    """
    own = {name: info for name, info in tensors.items() if name.startswith(MTP)}
    num_layers = num_mtp_layers(text_config, own)
    if family == "qwen3.8-flash-next":
        expected = {"fc_embedding", "fc_hidden", "pre_fc_norm_embedding", "pre_fc_norm_hidden"}
        present = modules_of(own)
        return MtpHead(num_layers, own, names_of(expected - present), ())
    expected = {"fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"}
    for layer in range(num_layers):
        parts = (*NORMS, *ATTENTION, *mlp_modules(family, text_config, f"layers.{layer}.", own))
        expected |= {f"layers.{layer}.{part}" for part in parts}
    present = modules_of(own)
    # a family may have more than this list knows, but not another layout of the experts
    return MtpHead(num_layers, own, names_of(expected - present), names_of(present - expected))


def num_mtp_layers(text_config: Mapping[str, Any], own: Mapping[str, TensorInfo]) -> int:
    """As config.json says, or, where it is silent (Qwen3-Next), as many as there are tensors of."""
    stated = text_config.get("mtp_num_hidden_layers", text_config.get("num_mtp_layers"))
    if isinstance(stated, int) and stated > 0:
        return stated
    found = {match.group(1) for name in own if (match := re.match(r"mtp\.layers\.(\d+)\.", name))}
    return len(found)


def modules_of(own: Mapping[str, TensorInfo]) -> set[str]:
    """`mtp.fc.weight` and its scales -> `fc`; a bare parameter keeps its name."""
    modules = set()
    for name in own:
        module, _, last = name.removeprefix(MTP).rpartition(".")
        modules.add(module if last in COMPANIONS else name.removeprefix(MTP))
    return modules


def names_of(modules: set[str]) -> tuple[str, ...]:
    """Module names as tensor names, in order."""
    return tuple(sorted(MTP + module for module in modules))


def mlp_modules(
    family: str, text_config: Mapping[str, Any], layer: str, own: Mapping[str, TensorInfo]
) -> list[str]:
    """Dense: three projections. MoE: router, shared expert, experts one by one or stacked."""
    if family == "qwen3.5":
        return [f"mlp.{name}" for name in PROJECTIONS]
    shared = [f"mlp.shared_expert.{name}" for name in PROJECTIONS]
    common = ["mlp.gate", "mlp.shared_expert_gate", *shared]
    if any(name.startswith(f"{MTP}{layer}mlp.experts.gate_up_proj") for name in own):
        return [*common, "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    experts = range(text_config.get("num_experts") or 0)
    return [*common, *(f"mlp.experts.{n}.{name}" for n in experts for name in PROJECTIONS)]
