"""Qwen3.5 with multi-token prediction in plain torch: oracle of the engines, model of the trainer.

Slow and simple on purpose: whole sequences, no caches. Tensor names are those of the released
checkpoints (``model.*``, ``mtp.*``, ``lm_head.*`` when the head is not tied).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trt_mtp.serve.model.config import ModelConfig
from trt_mtp.serve.model.layers import DecoderLayer, RMSNorm, rotary_table
from trt_mtp.serve.model.mtp import MtpBlock


class Trunk(nn.Module):
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, kind) for kind in config.layer_types])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, layers: tuple[int, ...] | None = None) -> Tensor:
        """Token ids [B, T] -> hidden states after the final norm [B, T, D].

        ``layers`` names the layers to run (all by default); the trainer grows depth with it.
        """
        rotary = rotary_table(torch.arange(token_ids.shape[1]), self.config)
        x = self.embed_tokens(token_ids)
        for index in range(len(self.layers)) if layers is None else layers:
            x = self.layers[index](x, rotary)
        normed: Tensor = self.norm(x)
        return normed


class Qwen35Mtp(nn.Module):
    """The language model and its draft layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.num_mtp_layers:
            self.mtp = MtpBlock(config)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> scores [..., V]."""
        tied = self.config.tie_word_embeddings
        weight = self.model.embed_tokens.weight if tied else self.lm_head.weight
        return F.linear(hidden, weight)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] -> scores of the next token [B, T, V], hidden states [B, T, D]."""
        hidden = self.model(token_ids)
        return self.logits(hidden), hidden

    def draft(self, next_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """First draft step at every position.

        next_ids [B, T]: token i + 1 at position i; hidden [B, T, D]: the trunk's state of token i
        -> scores of token i + 2 [B, T, V], states for the next step [B, T, D].
        """
        drafted = self.mtp(self.model.embed_tokens(next_ids), hidden)
        return self.logits(drafted), drafted

    def draft_chain(
        self, token_ids: Tensor, hidden: Tensor, starts: Tensor, depth: int
    ) -> list[Tensor]:
        """Draft states of steps 1 .. depth at the positions ``starts``, tokens taken as given.

        token_ids [B, T], hidden [B, T, D] of the trunk, starts [B, A] with start + depth < T
        -> ``depth`` of [B, A, D]; step d (from 1) scores token start + d + 1.
        """
        embed = self.model.embed_tokens
        following = F.pad(token_ids[:, 1:], (0, 1))
        fed = [
            embed(token_ids.gather(1, (starts + d).clamp(max=token_ids.shape[1] - 1)))
            for d in range(2, depth + 1)
        ]
        return self.mtp.chain(fed, hidden, starts, embed(following))


def load(folder: Path) -> Qwen35Mtp:
    """Read ``config.json`` and ``*.safetensors`` of a folder; weights become float32."""
    model = Qwen35Mtp(ModelConfig.from_folder(folder))
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()


def save(model: Qwen35Mtp, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``model.safetensors`` with the weights rounded to ``dtype``."""
    tensors = {name: t.detach().to(dtype).contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
