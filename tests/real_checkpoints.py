"""Checkpoints with the true names and shapes of the released models, in sparse files."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).with_name("fixtures") / "checkpoints"
NAMES = tuple(sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir()))
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I64": 8}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "mtp"],
    },
    "nvfp4": {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8",
        "ignore": ["lm_head", "mtp*", "mtp.layers.0*"],
    },
}  # fmt: skip
Shape = tuple[int, ...]
Tensor = tuple[str, str, Shape]  # name, dtype, shape


def write_real(
    name: str,
    folder: Path,
    precision: str = "bf16",
    num_shards: int = 4,
    *,
    with_mtp: bool = True,
    stacked: bool = False,
) -> Path:
    """The released model `name` in `folder`: config.json, index and sparse shards.

    Quantised checkpoints and Qwen3-Next have a tensor for each expert; `stacked` leaves them in
    one, which is the same number of bytes and much quicker to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((FIXTURES / name / "config.json").read_text())
    if precision != "bf16":
        config["quantization_config"] = QUANTIZATION[precision]
    (folder / "config.json").write_text(json.dumps(config))
    fused = stacked or (precision == "bf16" and config["model_type"] != "qwen3_next")
    tensors = list(quantized(model_tensors(config, fused=fused), precision))
    write_shards(folder, [t for t in tensors if with_mtp or t[0][:4] != "mtp."], num_shards)
    return folder


def write_shards(folder: Path, tensors: list[Tensor], num_shards: int) -> None:
    """Sparse safetensors files with `tensors`, and the index."""
    weight_map, total = {}, 0
    per_shard = -(-len(tensors) // num_shards)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        for name, dtype, shape in tensors[shard * per_shard : (shard + 1) * per_shard]:
            size = BYTES[dtype]
            for length in shape:
                size *= length
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def model_tensors(config: dict[str, Any], *, fused: bool) -> Iterator[Tensor]:
    """Names and shapes of a BF16 checkpoint; `fused` stacks the experts, as Qwen3.5's are."""
    text = config.get("text_config", config)
    prefix = "model.language_model." if "text_config" in config else "model."
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    yield f"{prefix}embed_tokens.weight", "BF16", (vocab, hidden)
    for layer in range(text["num_hidden_layers"]):
        at = f"{prefix}layers.{layer}."
        full = (layer + 1) % text["full_attention_interval"] == 0
        yield from full_attention(text, at) if full else linear_attention(text, at)
        yield from feed_forward(text, at, fused=fused)
        yield from norms(text, at)
    yield f"{prefix}norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocab, hidden)
    if text["model_type"] == "qwen4_exp_text":
        yield from ngram_table(text, prefix)
    yield from mtp_head(text, fused=fused)
    if "vision_config" in config:
        yield from vision_tower(config["vision_config"])


def full_attention(text: dict[str, Any], at: str) -> Iterator[Tensor]:
    """A gated attention layer: queries and output gate lie in q_proj."""
    hidden, size = text["hidden_size"], text["head_dim"]
    heads, kv_heads = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    yield f"{at}self_attn.q_proj.weight", "BF16", (2 * heads, hidden)
    yield f"{at}self_attn.k_proj.weight", "BF16", (kv_heads, hidden)
    yield f"{at}self_attn.v_proj.weight", "BF16", (kv_heads, hidden)
    yield f"{at}self_attn.o_proj.weight", "BF16", (hidden, heads)
    yield f"{at}self_attn.q_norm.weight", "BF16", (size,)
    yield f"{at}self_attn.k_norm.weight", "BF16", (size,)


def linear_attention(text: dict[str, Any], at: str) -> Iterator[Tensor]:
    """A Gated DeltaNet layer; Qwen3-Next packs its four projections into two."""
    at, hidden = f"{at}linear_attn.", text["hidden_size"]
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    heads, size = text["linear_num_value_heads"], text["linear_value_head_dim"]
    values, mixed = heads * size, 2 * keys + heads * size
    if text["model_type"] == "qwen3_next":
        yield f"{at}in_proj_qkvz.weight", "BF16", (mixed + values, hidden)
        yield f"{at}in_proj_ba.weight", "BF16", (2 * heads, hidden)
    else:
        yield f"{at}in_proj_qkv.weight", "BF16", (mixed, hidden)
        yield f"{at}in_proj_z.weight", "BF16", (values, hidden)
        yield f"{at}in_proj_b.weight", "BF16", (heads, hidden)
        yield f"{at}in_proj_a.weight", "BF16", (heads, hidden)
    yield f"{at}conv1d.weight", "BF16", (mixed, 1, text["linear_conv_kernel_dim"])
    yield f"{at}A_log", "F32", (heads,)
    yield f"{at}dt_bias", "BF16", (heads,)
    yield f"{at}norm.weight", "F32", (size,)
    yield f"{at}out_proj.weight", "BF16", (hidden, values)


def feed_forward(text: dict[str, Any], at: str, *, fused: bool) -> Iterator[Tensor]:
    """A dense MLP, or router, experts and shared expert."""
    hidden = text["hidden_size"]
    if "num_experts" not in text:
        yield from mlp(f"{at}mlp.", hidden, text["intermediate_size"])
        return
    experts, size = text["num_experts"], text["moe_intermediate_size"]
    yield f"{at}mlp.gate.weight", "BF16", (experts, hidden)
    if fused:
        yield f"{at}mlp.experts.gate_up_proj", "BF16", (experts, 2 * size, hidden)
        yield f"{at}mlp.experts.down_proj", "BF16", (experts, hidden, size)
    else:
        for expert in range(experts):
            yield from mlp(f"{at}mlp.experts.{expert}.", hidden, size)
    yield from mlp(f"{at}mlp.shared_expert.", hidden, text["shared_expert_intermediate_size"])
    yield f"{at}mlp.shared_expert_gate.weight", "BF16", (1, hidden)


def mlp(at: str, hidden: int, size: int) -> Iterator[Tensor]:
    """The three matrices of a gated MLP."""
    yield f"{at}gate_proj.weight", "BF16", (size, hidden)
    yield f"{at}up_proj.weight", "BF16", (size, hidden)
    yield f"{at}down_proj.weight", "BF16", (hidden, size)


def norms(text: dict[str, Any], at: str) -> Iterator[Tensor]:
    """The two norms of a layer."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}{name}.weight", "BF16", (text["hidden_size"],)


def mtp_head(text: dict[str, Any], *, fused: bool) -> Iterator[Tensor]:
    """The MTP head: one full-attention layer and what joins it to the model."""
    hidden = text["hidden_size"]
    if text["model_type"] == "qwen4_exp_text":
        yield "mtp.fc_embedding.weight", "BF16", (hidden, hidden)
        yield "mtp.fc_hidden.weight", "BF16", (hidden, text["hc_count"] * hidden)
        yield "mtp.pre_fc_norm_hidden.weight", "BF16", (text["hc_count"] * hidden,)
    else:
        yield "mtp.fc.weight", "BF16", (hidden, 2 * hidden)
        yield "mtp.pre_fc_norm_hidden.weight", "BF16", (hidden,)
    yield "mtp.pre_fc_norm_embedding.weight", "BF16", (hidden,)
    yield "mtp.norm.weight", "BF16", (hidden,)
    yield from full_attention(text, "mtp.layers.0.")
    yield from feed_forward(text, "mtp.layers.0.", fused=fused)
    yield from norms(text, "mtp.layers.0.")


def ngram_table(text: dict[str, Any], prefix: str) -> Iterator[Tensor]:
    """Flash-Next's table of n-gram embeddings: 16 heads of some 20 million rows in 128 parts."""
    parts = text["split_ngram_parts"]
    at = f"{prefix}layers.1.ple.ple_embedding."
    for part in range(parts):
        yield f"{at}ngram_embedding.shard_{part}.weight", "BF16", (2_500_012, 160)
    yield f"{at}layer_multipliers", "I64", (text["ngram_size"],)


def vision_tower(vision: dict[str, Any]) -> Iterator[Tensor]:
    """The large matrices of the vision tower."""
    hidden, size = vision["hidden_size"], vision["intermediate_size"]
    for block in range(vision["depth"]):
        at = f"model.visual.blocks.{block}."
        yield f"{at}attn.qkv.weight", "BF16", (3 * hidden, hidden)
        yield f"{at}attn.proj.weight", "BF16", (hidden, hidden)
        yield f"{at}mlp.linear_fc1.weight", "BF16", (size, hidden)
        yield f"{at}mlp.linear_fc2.weight", "BF16", (hidden, size)
    merged = hidden * vision["spatial_merge_size"] ** 2
    yield "model.visual.merger.linear_fc1.weight", "BF16", (merged, merged)
    yield "model.visual.merger.linear_fc2.weight", "BF16", (vision["out_hidden_size"], merged)


KEPT = ("embed_tokens", "lm_head", "mtp.", "visual", "mlp.gate.", "shared_expert_gate",
        "conv1d", "in_proj_a.", "in_proj_b.", "in_proj_ba", "ngram_embedding")  # fmt: skip


# the FP8 builds of models with experts have nothing but the experts in FP8 (deployment guide
# "Qwen3.8 MoE and Qwen3.5 MoE")
KEPT_BESIDE_EXPERTS = ("self_attn", "linear_attn", "shared_expert")


def quantized(tensors: Iterator[Tensor], precision: str) -> Iterator[Tensor]:
    """`tensors` with the matrices in FP8 blocks of 128 x 128, or in NVFP4 groups of 16."""
    listed = list(tensors)
    has_experts = any(".experts." in name for name, _, _ in listed)
    kept = KEPT + KEPT_BESIDE_EXPERTS if has_experts else KEPT
    for name, dtype, shape in listed:
        if precision == "bf16" or len(shape) < 2 or any(part in name for part in kept):
            yield name, dtype, shape
            continue
        *stack, rows, columns = shape
        if precision == "fp8":
            yield name, "F8_E4M3", shape
            yield f"{name}_scale_inv", "BF16", (*stack, -(-rows // 128), -(-columns // 128))
        else:
            yield name, "U8", (*stack, rows, columns // 2)
            yield f"{name}_scale", "F8_E4M3", (*stack, rows, columns // 16)
            yield f"{name}_scale_2", "F32", tuple(stack)


def remove(folder: Path) -> None:
    """Delete a written checkpoint."""
    shutil.rmtree(folder)
