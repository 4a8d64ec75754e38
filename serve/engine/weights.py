"""Packed weights of the CPU engine: mapped read-only, so that all variants share one copy.

`trt-mtp build` writes the files (trt_mtp.build.pack): `weights.bin`, and `weights.json`, where each
tensor lies in it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from trt_mtp.build.cpu_check import config_problems
from trt_mtp.build.layout import FORMAT
from trt_mtp.build.model_config import (
    check_config,
    layer_types_of,
    raise_problems,
    text_config_of,
)
from trt_mtp.build.rope import rope_of
from trt_mtp.errors import InputError
from trt_mtp.files import open_regular, read_json
from trt_mtp.serve.engine import forward
from trt_mtp.serve.engine.forward import Shape, Weights
from trt_mtp.serve.engine.rotary import rotary_tables

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


def read_shape(text: dict[str, Any]) -> Shape:
    """The sizes in a config that was checked."""
    return Shape(
        num_layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        vocab=text["vocab_size"],
        intermediate=text["intermediate_size"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        rope_dim=int(text["head_dim"] * rope_of(text).share),
        num_key_heads=text["linear_num_key_heads"],
        num_value_heads=text["linear_num_value_heads"],
        key_dim=text["linear_key_head_dim"],
        value_dim=text["linear_value_head_dim"],
        conv_kernel=text["linear_conv_kernel_dim"],
        eps=text.get("rms_norm_eps", 1e-6),
    )


def read_config(file: Path) -> dict[str, Any]:
    """The language model's part of config.json; raises InputError for one that can't be run."""
    config: dict[str, Any] = read_json(file)
    check_config(file, config, is_moe=False)
    text = dict(text_config_of(config))
    raise_problems(file, list(config_problems(text)))
    return text


def load_weights(folder: Path, length: int) -> tuple[Weights, Shape, list[str]]:
    """Map the weights in `folder` (config.json, weights.bin, weights.json) for `length` positions.

    Returns them with the sizes and the layer types. Raises InputError when a file or tensor is
    missing.
    """
    text = read_config(folder / "config.json")
    shape, kinds = read_shape(text), list(layer_types_of(text))
    index = read_json(folder / "weights.json")
    tensors = index["tensors"]
    if index["schema_version"] != FORMAT:
        raise InputError(
            f"{folder / 'weights.json'} has schema_version {index['schema_version']}, expected "
            f"{FORMAT}: another trt-mtp built it; build again"
        )
    try:
        with open_regular(folder / "weights.bin") as file:
            flat = np.asarray(np.memmap(file, dtype=np.float32, mode="r"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder / 'weights.bin'} can't be mapped: {reason}; put the variants on a file "
            f"system that maps files, so that they share the weights in memory"
        ) from None
    if flat.nbytes != index["num_bytes"]:
        raise InputError(
            f"{folder / 'weights.bin'} has {flat.nbytes} bytes, expected {index['num_bytes']}; "
            f"build again"
        )
    if hashlib.sha256(flat.data).hexdigest() != index["sha256"]:
        raise InputError(f"{folder / 'weights.bin'} is damaged: not what was packed; build again")

    def offset(name: str) -> int:
        if name not in tensors:
            raise InputError(f"{folder / 'weights.json'} has no tensor {name}; build again")
        size = 2 if tensors[name]["dtype"] == "bfloat16" else 4
        start = tensors[name]["offset"]
        if not isinstance(start, int) or not 0 <= start < flat.nbytes:
            raise InputError(f"{folder / 'weights.json'}: {name} lies outside; build again")
        return start // size

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
    cos, sin = rotary_tables(rope_of(text), shape.rope_dim, length + 1)
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
