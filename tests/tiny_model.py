"""A random-weight Qwen3.5-format checkpoint with an MTP layer, small enough to make in each test.

Names and shapes are those of the released checkpoints; `multimodal` adds the
`model.language_model.` prefix and the nested `text_config` that those carry.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 320

CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}\
{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

TEXT = (
    "The name is Ada and the city is Paris. Return JSON with the keys name, city and year.",
    '{"name": "Ada", "city": "Paris", "year": 1843, "tags": ["math", "engine"]}',
    "def add(a: int, b: int) -> int:\n    return a + b\n\n\nclass Point:\n    x: float\n",
)

Tensors = dict[str, NDArray[np.float32]]


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    multimodal: bool = False,
    with_mtp: bool = True,
    num_shards: int = 1,
    **config: Any,
) -> Path:
    """Write a checkpoint to `folder` and return it.

    `config` overrides keys of config.json, sizes included; dtype is float32, bfloat16 or float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_config = text_config_of(dtype, **config)
    tensors = random_tensors(text_config, np.random.default_rng(seed))
    if not with_mtp:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("mtp.")}
    if multimodal:
        tensors = {
            name.replace("model.", "model.language_model.", 1): value
            for name, value in tensors.items()
        }
        tensors["model.visual.patch_embed.proj.weight"] = np.zeros((8, 3, 2, 2), np.float32)
    write_config(folder, text_config, multimodal)
    write_weights(folder, tensors, dtype, num_shards)
    write_tokenizer(folder)
    return folder


def text_config_of(dtype: str, **config: Any) -> dict[str, Any]:
    """The text model's config.json, with `config` on top."""
    values: dict[str, Any] = {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "dtype": dtype,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attn_output_gate": True,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "eos_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
        "bos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    } | config
    interval = values["full_attention_interval"]
    values.setdefault(
        "layer_types",
        [
            "linear_attention" if (layer + 1) % interval else "full_attention"
            for layer in range(values["num_hidden_layers"])
        ],
    )
    return values


def random_tensors(config: Mapping[str, Any], rng: np.random.Generator) -> Tensors:
    """All tensors of the text model and its MTP layer, by released name."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tensors = {"model.embed_tokens.weight": normal(rng, vocab, hidden, scale=0.3)}
    for layer, kind in enumerate(config["layer_types"]):
        tensors |= layer_tensors(f"model.layers.{layer}.", kind, config, rng)
    tensors["model.norm.weight"] = centred_norm(rng, hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(rng, vocab, hidden, scale=0.3)
    for layer in range(config["mtp_num_hidden_layers"]):
        tensors |= layer_tensors(f"mtp.layers.{layer}.", "full_attention", config, rng)
    tensors["mtp.fc.weight"] = normal(rng, hidden, 2 * hidden)
    for name in ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding"):
        tensors[f"mtp.{name}.weight"] = centred_norm(rng, hidden)
    return tensors


def layer_tensors(
    prefix: str, kind: str, config: Mapping[str, Any], rng: np.random.Generator
) -> Tensors:
    """One decoder layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    mixer = attention_tensors if kind == "full_attention" else deltanet_tensors
    named = mixer(config, rng) | {
        "input_layernorm.weight": centred_norm(rng, hidden),
        "post_attention_layernorm.weight": centred_norm(rng, hidden),
        "mlp.gate_proj.weight": normal(rng, inner, hidden),
        "mlp.up_proj.weight": normal(rng, inner, hidden),
        "mlp.down_proj.weight": normal(rng, hidden, inner),
    }
    return {prefix + name: value for name, value in named.items()}


def attention_tensors(config: Mapping[str, Any], rng: np.random.Generator) -> Tensors:
    """Gated full attention; q_proj holds query and gate, interleaved per head."""
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return {
        "self_attn.q_proj.weight": normal(rng, 2 * queries, hidden),
        "self_attn.k_proj.weight": normal(rng, keys, hidden),
        "self_attn.v_proj.weight": normal(rng, keys, hidden),
        "self_attn.o_proj.weight": normal(rng, hidden, queries),
        "self_attn.q_norm.weight": centred_norm(rng, size),
        "self_attn.k_norm.weight": centred_norm(rng, size),
    }


def deltanet_tensors(config: Mapping[str, Any], rng: np.random.Generator) -> Tensors:
    """Gated DeltaNet, with decays spread as trained ones are."""
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    channels = 2 * keys + values
    step = np.exp(rng.uniform(np.log(0.001), np.log(0.1), heads))
    return {
        "linear_attn.in_proj_qkv.weight": normal(rng, channels, hidden),
        "linear_attn.in_proj_z.weight": normal(rng, values, hidden),
        "linear_attn.in_proj_b.weight": normal(rng, heads, hidden),
        "linear_attn.in_proj_a.weight": normal(rng, heads, hidden),
        "linear_attn.conv1d.weight": normal(
            rng, channels, 1, config["linear_conv_kernel_dim"], scale=0.3
        ),
        "linear_attn.norm.weight": 1 + centred_norm(rng, config["linear_value_head_dim"]),
        "linear_attn.out_proj.weight": normal(rng, hidden, values),
        "linear_attn.dt_bias": np.log(np.expm1(step)).astype(np.float32),
        "linear_attn.A_log": np.log(rng.uniform(1, 16, heads)).astype(np.float32),
    }


def normal(
    rng: np.random.Generator, *shape: int, scale: float | None = None
) -> NDArray[np.float32]:
    """Gaussian weights; by default scaled to keep the size of their input."""
    deviation = shape[-1] ** -0.5 if scale is None else scale
    return (rng.standard_normal(shape) * deviation).astype(np.float32)


def centred_norm(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """An RMS norm's weight around 0 (the model adds 1)."""
    return normal(rng, size, scale=0.1)


def write_config(folder: Path, text_config: dict[str, Any], multimodal: bool) -> None:
    """config.json and generation_config.json."""
    config = text_config
    if multimodal:
        inner = {key: value for key, value in text_config.items() if key != "architectures"}
        config = {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": "qwen3_5",
            "text_config": inner,
            "tie_word_embeddings": text_config["tie_word_embeddings"],
            "vision_config": {"model_type": "qwen3_5", "depth": 1, "hidden_size": 8},
        }
    write_json(folder / "config.json", config)
    ends = [SPECIAL_TOKENS.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "do_sample": False})


def write_weights(folder: Path, tensors: Tensors, dtype: str, num_shards: int) -> None:
    """model.safetensors, or shards with their index."""
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    write_json(folder / "model.safetensors.index.json", index | {"weight_map": weight_map})


def write_safetensors(path: Path, tensors: Tensors, dtype: str = "float32") -> None:
    """One safetensors file; written by hand because numpy has no bfloat16."""
    name_of_dtype = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, offset = [], 0
    for name, value in tensors.items():
        data = encode(value, dtype)
        header[name] = {
            "dtype": name_of_dtype,
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def put_copy(folder: Path, file: str, name: str = "model.embed_tokens.weight") -> None:
    """Write a file with another value of a tensor that the index gives to a shard."""
    shape = (VOCAB_SIZE, text_config_of("float32")["hidden_size"])
    write_safetensors(folder / file, {name: np.ones(shape, np.float32)})


def put_scales(folder: Path) -> None:
    """Give an unsharded checkpoint the scale of a weight, as quantised ones have them."""
    name = "model.layers.0.mlp.up_proj.weight_scale"
    write_safetensors(folder / "scales.safetensors", {name: np.ones(1, np.float32)})


def encode(value: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of `value` in `dtype`; bfloat16 rounds to nearest even."""
    if dtype == "float32":
        return value.astype("<f4").tobytes()
    if dtype == "float16":
        return value.astype("<f2").tobytes()
    bits = value.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_tokenizer(
    folder: Path, marks: Sequence[str] = (), chat_template: str = CHAT_TEMPLATE
) -> None:
    """A byte-level BPE with a few merges, Qwen's ChatML tokens and its form of template.

    `marks` are tokens of their own as well, and text, as `<think>` is in Qwen's tokenizers.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL_TOKENS, *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    saved = json.loads(tokenizer.to_str())
    for token in saved["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    write_json(folder / "tokenizer.json", saved)
    (folder / "chat_template.jinja").write_text(chat_template)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 512,
        },
    )


def write_json(path: Path, value: object) -> None:
    """Plain JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def rename_tensor(folder: Path, old: bytes, new: bytes) -> None:
    """Rename a tensor in every file, to a name of the same length."""
    for file in folder.glob("model*"):
        file.write_bytes(file.read_bytes().replace(old, new))


def change_config(folder: Path, **values: object) -> None:
    """Set keys of config.json."""
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | values)
