"""Layers of the Qwen3.5 text model in plain torch; module names give the checkpoint's tensor names.

Shapes: B sequences, T tokens, D hidden size, H heads. Activations are float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trt_mtp.serve.model.config import LINEAR, ModelConfig

CHUNK = 64
Rotary = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm whose scale is ``1 + weight``."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, x.shape[-1:], 1.0 + self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm followed by a SiLU gate; the scale is ``weight``."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """[..., size], [..., size] -> [..., size]."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps) * F.silu(gate)


def rotary_table(positions: Tensor, config: ModelConfig) -> Rotary:
    """Cosine and sine of the rotary angles: positions [...] -> two of [..., rotary_dim]."""
    exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    angle = positions.float()[..., None] / config.rope_theta**exponent
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the leading ``rotary_dim`` of x [..., head_dim] (half-split pairs)."""
    cos, sin = rotary
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, kept], -1)


def unit(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def chunked_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Gated delta rule over whole sequences, ``chunk`` tokens at a time.

    Per token: S <- exp(log_decay) S; S <- S + key (beta (value - key S)); out = query S.
    query, key [B, H, T, K], value [B, H, T, V], log_decay and beta [B, H, T] -> [B, H, T, V].
    query and key have length 1; the query is scaled by K ** -0.5 here.
    """
    batch, heads, tokens, width = key.shape
    pad = -tokens % chunk
    if pad:
        query, key, value = (F.pad(x, (0, 0, 0, pad)) for x in (query, key, value))
        log_decay, beta = F.pad(log_decay, (0, pad)), F.pad(beta, (0, pad))
    count = (tokens + pad) // chunk
    query, key, value = (
        x.reshape(batch, heads, count, chunk, -1) for x in (query * width**-0.5, key, value)
    )
    total = log_decay.reshape(batch, heads, count, chunk).cumsum(-1)
    beta = beta.reshape(batch, heads, count, chunk, 1)
    future = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
    transposed = key.transpose(-1, -2)
    grown = total.exp()[..., None]
    weighted = key * beta
    # The updates inside a chunk depend on each other: one unit triangular system solves them all.
    solved = torch.linalg.solve_triangular(
        (weighted @ transposed) * decay,
        torch.cat([value * beta, weighted * grown], -1),
        upper=False,
        unitriangular=True,
    )
    update, read = torch.split(solved, [value.shape[-1], width], -1)
    within = (query @ transposed) * decay
    query = query * grown
    write = (key * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2)
    kept = total[..., -1].exp()[..., None, None]
    state = key.new_zeros(batch, heads, width, value.shape[-1])
    outputs = []
    for index in range(count):
        new = update[:, :, index]
        if index:
            new = new - read[:, :, index] @ state
            outputs.append(query[:, :, index] @ state + within[:, :, index] @ new)
        else:
            outputs.append(within[:, :, index] @ new)
        if index + 1 < count:
            state = state * kept[:, :, index] + write[:, :, index] @ new
    return torch.cat(outputs, 2)[:, :, :tokens]


class GatedDeltaNet(nn.Module):
    """Linear attention with a short causal convolution and a gated delta-rule memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = 2 * config.key_dim + config.value_dim
        heads, kernel = config.linear_num_value_heads, config.linear_conv_kernel_dim
        self.conv1d = nn.Conv1d(
            channels, channels, kernel, groups=channels, bias=False, padding=kernel - 1
        )
        # Mamba2's range of time constants: all ones would leave the layer without memory.
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.norm = GatedRMSNorm(config.linear_value_head_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(config.value_dim, config.hidden_size, bias=False)
        self.in_proj_qkv = nn.Linear(config.hidden_size, channels, bias=False)
        self.in_proj_z = nn.Linear(config.hidden_size, config.value_dim, bias=False)
        self.in_proj_b = nn.Linear(config.hidden_size, heads, bias=False)
        self.in_proj_a = nn.Linear(config.hidden_size, heads, bias=False)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """[B, T, D] -> [B, T, D]; ``rotary`` is not used."""
        config, (batch, tokens, _) = self.config, x.shape
        padded = F.pad(self.in_proj_qkv(x), (0, 0, config.linear_conv_kernel_dim - 1, 0))
        taps = self.conv1d.weight[:, 0].unbind(-1)
        mixed = torch.zeros(())
        for lag, tap in enumerate(taps):
            mixed = mixed + padded[:, lag : lag + tokens] * tap
        widths = [config.key_dim, config.key_dim, config.value_dim]
        heads = (config.linear_num_key_heads,) * 2 + (config.linear_num_value_heads,)
        query, key, value = (
            part.reshape(batch, tokens, count, -1).transpose(1, 2)
            for part, count in zip(torch.split(F.silu(mixed), widths, -1), heads, strict=True)
        )
        query, key = unit(query), unit(key)
        shared = config.linear_num_value_heads // config.linear_num_key_heads
        if shared > 1:
            query, key = (x.repeat_interleave(shared, 1) for x in (query, key))
        beta = self.in_proj_b(x).sigmoid().transpose(1, 2)
        log_decay = -self.A_log.exp() * F.softplus(self.in_proj_a(x) + self.dt_bias)
        out = chunked_delta_rule(query, key, value, log_decay.transpose(1, 2), beta)
        gate = self.in_proj_z(x).view(batch, tokens, config.linear_num_value_heads, -1)
        normed = self.norm(out.transpose(1, 2), gate).reshape(batch, tokens, -1)
        projected: Tensor = self.out_proj(normed)
        return projected


class GatedAttention(nn.Module):
    """Grouped-query attention with normed queries and keys and a sigmoid output gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, 2 * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def queries(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> rotated queries [B, H, T, head_dim] and output gates [B, T, size]."""
        batch, tokens, _ = x.shape
        query, gate = self.q_proj(x).view(batch, tokens, self.heads, -1).chunk(2, -1)
        query = rotate(self.q_norm(query).transpose(1, 2), rotary)
        return query, gate.reshape(batch, tokens, -1).sigmoid()

    def keys_values(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> rotated keys and values, both [B, kv_heads, T, head_dim]."""
        batch, tokens, _ = x.shape
        key = self.k_proj(x).view(batch, tokens, self.kv_heads, -1).transpose(1, 2)
        value = self.v_proj(x).view(batch, tokens, self.kv_heads, -1).transpose(1, 2)
        return rotate(self.k_norm(key), rotary), value

    def project(self, out: Tensor, gate: Tensor) -> Tensor:
        """Heads' outputs [B, H, T, head_dim] and gates [B, T, size] -> [B, T, D]."""
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2) * gate)
        return projected

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Causal self-attention, [B, T, D] -> [B, T, D]."""
        query, gate = self.queries(x, rotary)
        key, value = self.keys_values(x, rotary)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.project(out, gate)


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class DecoderLayer(nn.Module):
    """Pre-norm block: a mixer over tokens, then an MLP."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        if kind == LINEAR:
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = GatedAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def mixer(self) -> GatedDeltaNet | GatedAttention:
        """The layer's token mixer, under the name it has in the checkpoint."""
        return self.linear_attn if hasattr(self, "linear_attn") else self.self_attn

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.mixer(self.input_layernorm(x), rotary)
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half of the block, [B, T, D] -> [B, T, D]."""
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
