"""Muon for matrices, AdamW for everything else, under one schedule."""

from __future__ import annotations

from collections.abc import Iterable

import parallel
import torch
from torch import Tensor, nn

SMALL_ROWS = 16


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, [N, R, C] -> [N, R, C]."""
    wide = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.transpose(1, 2) if wide else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if wide else x


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalized; matrices of one shape are done together."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                self._update(group, params, max(1.0, shape[0] / shape[1]) ** 0.5)

    def _update(self, group: dict[str, float], params: list[nn.Parameter], scale: float) -> None:
        moved = []
        for p in params:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            moved.append(p.grad.lerp(momentum, group["momentum"]))
        for p, update in zip(
            params, parallel.share(orthogonalize, torch.stack(moved)), strict=True
        ):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * scale)


def make(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon over the large matrices of the layers, AdamW over embeddings, norms and the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        big = p.ndim == 2 and p.shape[0] > SMALL_ROWS and "embed" not in name
        (matrices if big else rest).append(p)
    return [
        Muon(matrices, muon_lr),
        torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0.0),
    ]
