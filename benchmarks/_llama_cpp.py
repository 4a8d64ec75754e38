"""llama.cpp (PyPI xllamacpp) on a GGUF file of the same weights: the peer in benchmarks.engine.

Names, keys and transformations are
those of llama.cpp's own converter for the architecture qwen35 (github.com/ggml-org/llama.cpp,
convert_hf_to_gguf.py); the same greedy tokens as ours show that they are right.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from trt_mtp.build.checkpoint import Checkpoint, read_checkpoint
from trt_mtp.build.pack import Source

Array = npt.NDArray[np.float32]

LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
GLOBAL_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
}


MTP_NAMES = {
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}


def write_gguf(checkpoint: Path, file: Path, quantization: str, *, with_mtp: bool = False) -> None:
    """Write `checkpoint` to `file` with matrices in "f32" or "q8_0".

    Without the MTP layer, llama.cpp decodes plainly. Only checkpoints with as many key heads as
    value heads: the converter reorders others.
    """
    source = read_checkpoint(checkpoint)
    writer = gguf.GGUFWriter(file, "qwen35")
    add_sizes(writer, source.text_config, with_mtp)
    add_tokenizer(writer, checkpoint, source.vocab_size)
    for name, value in tensors_of(source, with_mtp):
        is_matrix = value.ndim == 2 and "conv1d" not in name
        if is_matrix and quantization == "q8_0" and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, config: Any, with_mtp: bool) -> None:
    """The model's sizes."""
    if config["linear_num_key_heads"] != config["linear_num_value_heads"]:
        raise SystemExit("llama.cpp is measured only where key heads equal value heads")
    rope = config["rope_parameters"]
    writer.add_block_count(config["num_hidden_layers"] + with_mtp)
    if with_mtp:
        writer.add_nextn_predict_layers(1)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_full_attention_interval(config["full_attention_interval"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_num_value_heads"] * config["linear_value_head_dim"])


def add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, vocab: int) -> None:
    """The byte-level BPE and the chat template."""
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    by_id = {i: token for token, i in content["model"]["vocab"].items()} | special
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(vocab)])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(vocab)]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(max(special))
    template = checkpoint / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def tensors_of(source: Checkpoint, with_mtp: bool) -> list[tuple[str, Array]]:
    """The tensors under their GGUF names; the MTP layer comes after those of the trunk."""
    names = {f"{source.prefix}{old}": new for old, new in GLOBAL_NAMES.items()}
    names["lm_head.weight"] = "output.weight"
    for layer in range(len(source.layer_types)):
        prefix = f"{source.prefix}layers.{layer}."
        names |= {prefix + old: f"blk.{layer}.{new}" for old, new in LAYER_NAMES.items()}
    if with_mtp:
        prefix = f"blk.{len(source.layer_types)}."
        names |= {f"mtp.{old}": prefix + new for old, new in MTP_NAMES.items()}
        names |= {f"mtp.layers.0.{old}": prefix + new for old, new in LAYER_NAMES.items()}
    result = []
    for old, new in names.items():
        if old not in source.tensors:
            continue
        info = source.tensors[old]
        value = Source(old, info).rows(0, info.shape[0])
        if len(info.shape) == 1:
            value = value[:, 0]
        if new.endswith("norm.weight") and "ssm" not in new:
            value = value + np.float32(1)  # zero-centred in Qwen3.5, not in llama.cpp
        if new.endswith("ssm_a"):
            value = -np.exp(value)
        result.append((new, value))
    return result


class LlamaCpp:
    """A llama.cpp server in this process."""

    def __init__(self, file: Path, threads: int, context: int = 1024) -> None:
        """Load `file`."""
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        parameters.warmup = False
        parameters.verbosity = -1
        self._server = xllamacpp.Server(parameters)

    def tok_s(self, prompt: Sequence[int], max_tokens: int) -> float:
        """Tokens a second of greedy decoding, the prompt's time left out, by its own clock."""
        timings = self._complete(prompt, max_tokens)["timings"]
        # the first token comes with the prompt
        return float((timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3)

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The greedy answer; never an end token."""
        reply = self._complete(prompt, max_tokens, n_probs=1)
        return [item["id"] for item in reply["choices"][0]["logprobs"]["content"]]

    def _complete(self, prompt: Sequence[int], max_tokens: int, **options: int) -> Any:
        request = {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "temperature": 0.0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        return self._server.handle_completions(request | options)
