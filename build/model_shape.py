"""The sizes of a checkpoint that decide memory and parallelism."""

import math
from dataclasses import dataclass

from trt_mtp.build.checkpoint import Checkpoint

VISION_PREFIXES = ("model.visual.", "visual.")
# Flash-Next's table of n-gram embeddings, which TRTLLM_QWEN4_EXP_PLE_HOST_OFFLOAD=1 leaves in
# the host's memory (TensorRT-LLM deployment guide "Qwen3.8-Flash-Next")
HOST_TABLE = ".ngram_embedding."
# matrices that ModelOpt leaves as they are: embeddings, output head, MTP head and routers
# (exclude_modules of nvidia/Qwen3.6-27B-NVFP4's hf_quant_config.json)
UNQUANTIZED = (
    "embed_tokens", "lm_head", "mtp.", "visual", ".mlp.gate.", "shared_expert_gate", "conv1d",
    HOST_TABLE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; bytes and weights count the text model without its MTP head."""

    family: str
    is_moe: bool
    is_quantized: bool
    hidden_size: int
    feed_forward_size: int  # of one token: all experts that it visits
    vocab_size: int
    context_length: int
    num_full_layers: int
    num_linear_layers: int
    num_mtp_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_linear_key_heads: int
    num_linear_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    conv_kernel: int
    weight_bytes: int
    vision_bytes: int
    host_bytes: int  # weights that stay in the host's memory
    mtp_bytes: int
    num_linear_weights: int  # weights of matrices that quantisation would shrink
    num_experts: int = 0  # of a layer; 0 for a dense model
    num_active_experts: int = 0  # that one token visits, the shared one apart
    expert_bytes: int = 0  # of all of them in all layers, the shared ones and the MTP head's apart
    mtp_expert_bytes: int = 0  # the same of the MTP head

    @property
    def has_vision(self) -> bool:
        """Whether the checkpoint has a vision tower."""
        return self.vision_bytes > 0

    @property
    def parallel_sizes(self) -> tuple[int, ...]:
        """Tensor-parallel sizes up to 64 that divide every kind of head, smallest first."""
        heads = math.gcd(self.num_heads, self.num_linear_key_heads, self.num_linear_value_heads)
        return tuple(size for size in (1, 2, 4, 8, 16, 32, 64) if self._divides(size, heads))

    def _divides(self, size: int, heads: int) -> bool:
        # fewer KV heads than GPUs are copied, which needs a whole number of copies
        kv = self.num_kv_heads
        return heads % size == 0 and (kv % size == 0 or size % kv == 0)


def shape_of(checkpoint: Checkpoint) -> ModelShape:
    """The sizes of `checkpoint`."""
    config = checkpoint.text_config
    layers = checkpoint.num_layers
    linear_layers = layers.get("linear_attention", 0)
    vision_bytes = host_bytes = expert_bytes = mtp_expert_bytes = 0
    for name, info in checkpoint.tensors.items():
        if ".experts." in name:
            if name.startswith("mtp."):
                mtp_expert_bytes += info.num_bytes
            else:
                expert_bytes += info.num_bytes
        if name.startswith(VISION_PREFIXES):
            vision_bytes += info.num_bytes
        elif HOST_TABLE in name:
            host_bytes += info.num_bytes
    return ModelShape(
        family=checkpoint.family,
        is_moe=checkpoint.is_moe,
        is_quantized=checkpoint.quantization is not None,
        hidden_size=int(config["hidden_size"]),
        feed_forward_size=feed_forward_size(checkpoint),
        vocab_size=checkpoint.vocab_size,
        context_length=checkpoint.context_length,
        num_full_layers=sum(layers.values()) - linear_layers,
        num_linear_layers=linear_layers,
        num_mtp_layers=max(1, checkpoint.mtp.num_layers),
        num_heads=int(config["num_attention_heads"]),
        num_kv_heads=int(config["num_key_value_heads"]),
        head_dim=int(config["head_dim"]),
        num_linear_key_heads=int(config["linear_num_key_heads"]),
        num_linear_value_heads=int(config["linear_num_value_heads"]),
        linear_key_head_dim=int(config["linear_key_head_dim"]),
        linear_value_head_dim=int(config["linear_value_head_dim"]),
        conv_kernel=int(config["linear_conv_kernel_dim"]),
        weight_bytes=checkpoint.num_bytes - vision_bytes - host_bytes - checkpoint.mtp.num_bytes,
        vision_bytes=vision_bytes,
        host_bytes=host_bytes,
        mtp_bytes=checkpoint.mtp.num_bytes,
        num_linear_weights=num_linear_weights(checkpoint),
        num_experts=int(config["num_experts"]) if checkpoint.is_moe else 0,
        num_active_experts=int(config["num_experts_per_tok"]) if checkpoint.is_moe else 0,
        expert_bytes=expert_bytes,
        mtp_expert_bytes=mtp_expert_bytes,
    )


def feed_forward_size(checkpoint: Checkpoint) -> int:
    """Width of the feed-forward part that one token passes through."""
    config = checkpoint.text_config
    if not checkpoint.is_moe:
        return int(config["intermediate_size"])
    experts = int(config["num_experts_per_tok"]) * int(config["moe_intermediate_size"])
    return experts + int(config.get("shared_expert_intermediate_size") or 0)


def num_linear_weights(checkpoint: Checkpoint) -> int:
    """Weights of the matrices that ModelOpt quantises; 0 for a checkpoint that is quantised."""
    if checkpoint.quantization is not None:
        return 0
    return sum(
        math.prod(info.shape)
        for name, info in checkpoint.tensors.items()
        if len(info.shape) >= 2 and not any(part in name for part in UNQUANTIZED)
    )
