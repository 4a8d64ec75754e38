"""The multi-token-prediction layer: drafts the token after next from a hidden state and a token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trt_mtp.serve.model.config import FULL, ModelConfig
from trt_mtp.serve.model.layers import DecoderLayer, GatedAttention, RMSNorm, Rotary, rotary_table

NEG_INF = -torch.inf


class MtpBlock(nn.Module):
    """One full-attention layer over pairs (hidden state of token i, embedding of token i + 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config, FULL)])
        self.norm = RMSNorm(size, eps)
        self.pre_fc_norm_hidden = RMSNorm(size, eps)
        self.pre_fc_norm_embedding = RMSNorm(size, eps)

    @property
    def layer(self) -> DecoderLayer:
        """The one layer."""
        layer = self.layers[0]
        assert isinstance(layer, DecoderLayer)
        return layer

    def combine(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """Embedding and hidden state, both [B, T, D] -> the layer's input [B, T, D]."""
        pair = [self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)]
        combined: Tensor = self.fc(torch.cat(pair, -1))
        return combined

    def forward(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """First draft step at every position, [B, T, D] twice -> [B, T, D].

        Position i pairs the trunk's hidden state of token i with token i + 1 and sees pairs <= i.
        """
        rotary = rotary_table(torch.arange(hidden.shape[1]), self.config)
        drafted: Tensor = self.norm(self.layer(self.combine(embedding, hidden), rotary))
        return drafted

    def chain(
        self, embeddings: list[Tensor], hidden: Tensor, starts: Tensor, first: Tensor
    ) -> list[Tensor]:
        """Draft steps 1 .. n from the positions ``starts``, each fed with the step before.

        Step d at position i sees the trunk's pairs <= i and its own earlier steps, which is what
        a draft does at inference (the cache behind it holds pairs of accepted tokens only).
        first [B, T, D]: embeddings of token i + 1; hidden [B, T, D] of the trunk;
        starts [B, A]: positions; embeddings[d] [B, A, D]: token i + 2 + d -> n of [B, A, D].
        """
        layer, attention = self.layer, self.layer.self_attn
        pairs = self.combine(first, hidden)
        tokens = hidden.shape[1]
        normed = layer.input_layernorm(pairs)
        key, value = attention.keys_values(normed, rotary_table(torch.arange(tokens), self.config))
        pick = starts[..., None].expand(-1, -1, hidden.shape[-1])
        visible = torch.arange(tokens) <= starts[..., None]
        own: list[tuple[Tensor, Tensor]] = []
        x = pairs.gather(1, pick)
        outputs = []
        for depth in range(len(embeddings) + 1):
            rotary = rotary_table(starts + depth, self.config)
            normed = layer.input_layernorm(x)
            if depth:
                own.append(attention.keys_values(normed, _per_head(rotary)))
            mixed = _attend(attention, normed, _per_head(rotary), (key, value, visible), own)
            x = x + mixed
            x = self.norm(layer.feed_forward(x))
            outputs.append(x)
            if depth < len(embeddings):
                x = self.combine(embeddings[depth], x)
        return outputs


def _per_head(rotary: Rotary) -> Rotary:
    return rotary[0][:, None], rotary[1][:, None]


def _attend(
    attention: GatedAttention,
    x: Tensor,
    rotary: Rotary,
    shared: tuple[Tensor, Tensor, Tensor],
    own: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of x [B, A, D] over shared keys [B, H, T, d] (masked) and one own key per step."""
    key, value, visible = shared
    query, gate = attention.queries(x, rotary)
    groups = attention.heads // attention.kv_heads
    batch, _, count, width = query.shape
    query = query.view(batch, attention.kv_heads, groups, count, width) * width**-0.5
    scores = query @ key[:, :, None].transpose(-1, -2)
    scores = scores.masked_fill(~visible[:, None, None], NEG_INF)
    extra = [(query * k[:, :, None]).sum(-1, keepdim=True) for k, _ in own]
    weights = torch.cat([scores, *extra], -1).softmax(-1)
    out = weights[..., : key.shape[2]] @ value[:, :, None]
    for step, (_, v) in enumerate(own):
        out = out + weights[..., key.shape[2] + step, None] * v[:, :, None]
    return attention.project(out.reshape(batch, attention.heads, count, width), gate)
