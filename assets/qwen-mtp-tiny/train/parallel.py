"""Data parallelism over processes of one thread each, which beats threads on small matrices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


def launch(work: Callable[[Any], None], args: Any, workers: int) -> None:
    """Run ``work(args)`` in ``workers`` processes that can reach each other."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_enter, (work, args, workers, Path(folder) / "store"), nprocs=workers)  # type: ignore[no-untyped-call]


def _enter(rank: int, work: Callable[[Any], None], args: Any, workers: int, store: Path) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    work(args)
    dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank()


def average_gradients(model: nn.Module, extra: float) -> float:
    """Average all gradients over the processes; returns the average of ``extra``."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([extra])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return float(flat[-1])


def share(work: Callable[[Tensor], Tensor], stacked: Tensor) -> Tensor:
    """``work`` on [N, ...], each process doing its part of the N."""
    done = torch.zeros_like(stacked)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    if len(stacked[mine]):
        done[mine] = work(stacked[mine])
    dist.all_reduce(done)
    return done
