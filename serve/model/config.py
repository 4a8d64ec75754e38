"""Sizes of a Qwen3.5 text model with multi-token prediction, from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.files import read_json

LINEAR = "linear_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class ModelConfig:
    """Architecture sizes; the names are those of ``Qwen3_5TextConfig``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int = 4
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    num_mtp_layers: int = 1

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of each head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def key_dim(self) -> int:
        """Width of all key (and of all query) heads of a Gated DeltaNet layer."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all value heads of a Gated DeltaNet layer."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read the contents of config.json; a nested ``text_config`` is used when there is one."""
        text = config.get("text_config", config)
        interval = text.get("full_attention_interval", 4)
        types = text.get("layer_types") or [
            LINEAR if (layer + 1) % interval else FULL for layer in range(text["num_hidden_layers"])
        ]
        rope = text.get("rope_parameters") or {}
        heads = text["num_attention_heads"]
        return cls(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            layer_types=tuple(types),
            num_attention_heads=heads,
            num_key_value_heads=text.get("num_key_value_heads", heads),
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            linear_num_key_heads=text["linear_num_key_heads"],
            linear_num_value_heads=text["linear_num_value_heads"],
            linear_key_head_dim=text["linear_key_head_dim"],
            linear_value_head_dim=text["linear_value_head_dim"],
            linear_conv_kernel_dim=text.get("linear_conv_kernel_dim", 4),
            rope_theta=rope.get("rope_theta", text.get("rope_theta", 10000.0)),
            partial_rotary_factor=rope.get(
                "partial_rotary_factor", text.get("partial_rotary_factor", 0.25)
            ),
            rms_norm_eps=text.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=text.get(
                "tie_word_embeddings", config.get("tie_word_embeddings", False)
            ),
            num_mtp_layers=text.get("mtp_num_hidden_layers", text.get("num_mtp_layers", 0)),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read ``folder/config.json``."""
        return cls.from_hf(read_json(folder / "config.json"))
