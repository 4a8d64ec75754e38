"""Packed weights of the CPU engine: mapped read-only, so that all variants share one copy.

`trt-mtp build` writes the files (trt_mtp.build.pack): `weights.bin`, and `weights.json`, where each
tensor lies in it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from trt_mtp.build.layout import FORMAT
from trt_mtp.errors import InputError
from trt_mtp.files import read_json
from trt_mtp.serve.engine import forward
from trt_mtp.serve.engine.forward import Shape, Weights
from trt_mtp.serve.engine.kernels import Array

LINEAR_FIELDS = {
    forward.PROJ: "linear_attn.in_proj",
    forward.OUT: "linear_attn.out_proj",
    forward.CONV: "linear_attn.conv1d",
    forward.DT_BIAS: "linear_attn.dt_bias",
    forward.A_LOG: "linear_attn.A_log",
    forward.GDN_NORM: "linear_attn.norm",
}
ATTENTION_FIELDS = {
    forward.PROJ: "self_attn.qkv_proj",
    forward.OUT: "self_attn.o_proj",
    forward.Q_NORM: "self_attn.q_norm",
    forward.K_NORM: "self_attn.k_norm",
}
LAYER_FIELDS = {
    forward.IN_NORM: "input_layernorm",
    forward.POST_NORM: "post_attention_layernorm",
    forward.GATE_UP: "mlp.gate_up_proj",
    forward.DOWN: "mlp.down_proj",
}
DRAFT_FIELDS = {
    forward.FC: "mtp.fc",
    forward.LM_HEAD: "mtp.lm_head",  # the same matrix as lm_head, in bfloat16
}
GLOBAL_FIELDS = {
    forward.EMBED: "embed_tokens",
    forward.LM_HEAD: "lm_head",
    forward.NORM: "norm",
    forward.MTP_NORM: "mtp.norm",
    forward.PRE_EMBEDDING: "mtp.pre_fc_norm_embedding",
    forward.PRE_HIDDEN: "mtp.pre_fc_norm_hidden",
}


def read_text_config(folder: Path) -> dict[str, Any]:
    """The language model's part of config.json."""
    config: dict[str, Any] = read_json(folder / "config.json")
    return config.get("text_config") or config


def layer_types(config: dict[str, Any]) -> list[str]:
    """Per layer, "linear_attention" or "full_attention"."""
    if "layer_types" in config:
        return list(config["layer_types"])
    interval = config.get("full_attention_interval", 4)
    return [
        "full_attention" if (i + 1) % interval == 0 else "linear_attention"
        for i in range(config["num_hidden_layers"])
    ]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or config


def check_sizes(shape: Shape) -> None:
    """Raise InputError unless the kernels, which take four rows of a matrix at a time, can run."""
    for name in ("hidden", "intermediate", "head_dim", "key_dim", "value_dim"):
        size = getattr(shape, name)
        if size <= 0 or size % 4:
            raise InputError(
                f"config.json makes {name} {size}; the cpu engine needs a multiple of 4"
            )


def read_shape(config: dict[str, Any]) -> Shape:
    """The sizes in config.json; raises InputError when one is missing."""
    try:
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return Shape(
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            vocab=config["vocab_size"],
            intermediate=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=head_dim,
            rope_dim=int(head_dim * _rope(config).get("partial_rotary_factor", 0.25)),
            num_key_heads=config["linear_num_key_heads"],
            num_value_heads=config["linear_num_value_heads"],
            key_dim=config["linear_key_head_dim"],
            value_dim=config["linear_value_head_dim"],
            conv_kernel=config["linear_conv_kernel_dim"],
            eps=config.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise InputError(f"config.json has no {error}, which a Qwen3.5 model needs") from None


def rotary_tables(config: dict[str, Any], shape: Shape, length: int) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, each [length, rope_dim / 2].

    Text positions are the same in all sections of Qwen's multimodal rope, which makes it the plain
    one.
    """
    theta = float(_rope(config).get("rope_theta", 10000.0))
    exponents = np.arange(0, shape.rope_dim, 2, dtype=np.float32) / shape.rope_dim
    inverse = (1.0 / theta**exponents).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def load_weights(folder: Path, length: int) -> tuple[Weights, Shape, list[str]]:
    """Map the weights in `folder` (config.json, weights.bin, weights.json) for `length` positions.

    Returns them with the sizes and the layer types. Raises InputError when a file or tensor is
    missing.
    """
    config = read_text_config(folder)
    shape, kinds = read_shape(config), layer_types(config)
    check_sizes(shape)
    index = read_json(folder / "weights.json")
    tensors = index["tensors"]
    if index["schema_version"] != FORMAT:
        raise InputError(
            f"{folder / 'weights.json'} has schema_version {index['schema_version']}, expected "
            f"{FORMAT}: another trt-mtp built it; build again"
        )
    try:
        flat = np.asarray(np.memmap(folder / "weights.bin", dtype=np.float32, mode="r"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'weights.bin'} can't be mapped: {error}") from None
    if flat.nbytes != index["num_bytes"]:
        raise InputError(
            f"{folder / 'weights.bin'} has {flat.nbytes} bytes, expected {index['num_bytes']}; "
            f"build again"
        )

    def offset(name: str) -> int:
        if name not in tensors:
            raise InputError(f"{folder / 'weights.json'} has no tensor {name}; build again")
        size = 2 if tensors[name]["dtype"] == "bfloat16" else 4
        return int(tensors[name]["offset"]) // size

    table = np.zeros((shape.num_layers + 2, forward.NUM_FIELDS), np.int64)
    counts = {"linear_attention": 0, "full_attention": 0}
    layers = [(f"layers.{i}", kind) for i, kind in enumerate(kinds)]
    for row, (prefix, kind) in enumerate([*layers, ("mtp.layers.0", "full_attention")]):
        linear = kind == "linear_attention"
        for field, name in (LAYER_FIELDS | (LINEAR_FIELDS if linear else ATTENTION_FIELDS)).items():
            table[row, field] = offset(f"{prefix}.{name}")
        table[row, forward.IS_LINEAR] = int(linear)
        table[row, forward.STATE] = counts[kind]
        counts[kind] += 1
    for field, name in DRAFT_FIELDS.items():
        table[-2, field] = offset(name)
    for field, name in GLOBAL_FIELDS.items():
        table[-1, field] = offset(name)
    cos, sin = rotary_tables(config, shape, length + 1)
    return Weights(flat, flat.view(np.uint16), table, cos, sin), shape, kinds


def projection_width(shape: Shape) -> int:
    """The widest row any projection of a layer (or the MTP head's input) needs."""
    values = shape.num_value_heads * shape.value_dim
    linear = 2 * shape.num_key_heads * shape.key_dim + 2 * values + 2 * shape.num_value_heads
    attention = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    return max(linear, attention, 2 * shape.intermediate, 2 * shape.hidden)


def mixed_width(shape: Shape) -> int:
    """The widest row that enters an output projection."""
    return max(
        shape.num_value_heads * shape.value_dim,
        shape.num_heads * shape.head_dim,
        shape.intermediate,
    )
