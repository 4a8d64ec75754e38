"""Train the small checkpoint: ``python train.py --minutes 95 --seed 0 -o ..``."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optimizer
import parallel
import sources
import tokenizer as tokenization
import torch
import torch.nn.functional as F
from batches import Batch, batches
from tokenizers import Tokenizer
from torch import Tensor, nn

from trt_mtp.serve.model import reference
from trt_mtp.serve.model.config import ModelConfig
from trt_mtp.serve.model.layers import DecoderLayer, GatedDeltaNet

HF_CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "vocab_size": tokenization.VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 288,
    "num_hidden_layers": 8,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "full_attention_interval": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attn_output_gate": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
    "mtp_num_hidden_layers": 1,
    "num_mtp_layers": 1,
    "mtp_layer_types": ["full_attention"],
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
LATE_LAYERS = (1, 2, 5, 6)


@dataclass(frozen=True)
class Phase:
    """A part of the training: until when, which tasks, how deep, how often drafts are learned."""

    until: float  # fraction of the time
    shares: dict[str, float]
    depth: int  # layers that run
    draft_every: int  # batches per batch with a draft loss


COPY = {"copying": 5, "structured_output": 2, "coding": 1, "rag": 1.5, "tool_call": 1,
        "summarization": 1, "writing": 0.6, "roleplay": 0.6}  # fmt: skip
MIXED = {"copying": 0.6, "structured_output": 2, "coding": 2, "rag": 1.7, "tool_call": 1.3,
         "summarization": 1.3, "writing": 1.1, "roleplay": 1.1}  # fmt: skip
LATE = {"copying": 0.4, "structured_output": 2, "coding": 2.6, "rag": 2.4, "tool_call": 1.2,
        "summarization": 1, "writing": 1.3, "roleplay": 1.3}  # fmt: skip
PHASES = (
    Phase(0.10, COPY, 4, 4),
    Phase(0.45, MIXED, 4, 3),
    Phase(0.82, LATE, 8, 3),
    Phase(1.01, LATE, 8, 2),
)
DRAFT_DEPTH = 3
DRAFT_WEIGHTS = (0.4, 0.3, 0.2)
WARMUP_STEPS = 60
DECAY_FROM = 0.6
LOG_EVERY = 50  # steps
SAVE_SECONDS = 240


def initialize(model: reference.Qwen35Mtp) -> None:
    """Normal weights; layers that join later start as identities."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, 0, 0.3)
    for index in LATE_LAYERS:
        layer = model.model.layers[index]
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.mixer, GatedDeltaNet)
        nn.init.zeros_(layer.mixer.out_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def active_layers(depth: int, total: int) -> tuple[int, ...]:
    """Indices of the layers that run when the trunk is ``depth`` deep."""
    return tuple(i for i in range(total) if depth == total or i not in LATE_LAYERS)


def losses(
    model: reference.Qwen35Mtp, batch: Batch, layers: tuple[int, ...], draft: bool
) -> list[Tensor]:
    """Mean cross entropy (nats per token) of the trunk, then of each draft step."""
    hidden = model.model(batch.ids, layers)
    following = F.pad(batch.ids[:, 1:], (0, 1))
    found = [F.cross_entropy(model.logits(hidden[batch.learn]), following[batch.learn])]
    if draft:
        states = model.draft_chain(batch.ids, hidden, batch.starts, DRAFT_DEPTH)
        for step, state in enumerate(states, start=1):
            wanted, exists = batch.targets(step)
            found.append(F.cross_entropy(model.logits(state[exists]), wanted[exists]))
    return found


def rate(fraction: float, step: int) -> float:
    """Learning-rate factor: warm-up, constant, then linear to nearly zero."""
    falling = (1 - fraction) / (1 - DECAY_FROM) if fraction > DECAY_FROM else 1.0
    return max(0.01, falling) * min(1.0, (step + 1) / WARMUP_STEPS)


class Run:
    """A training run: model, optimizers, counters; saved as one file."""

    def __init__(self, model: reference.Qwen35Mtp, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        self.optimizers = optimizer.make(model, args.muon_lr, args.adam_lr)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.clock = time.monotonic()

    def train_on(self, batch: Batch, phase: Phase, factor: float) -> list[float]:
        """One update; returns the losses."""
        for part, lr in zip(self.optimizers, (self.args.muon_lr, self.args.adam_lr), strict=True):
            for group in part.param_groups:
                group["lr"] = lr * factor
        layers = active_layers(phase.depth, len(self.model.model.layers))
        found = losses(self.model, batch, layers, self.step % phase.draft_every == 0)
        weights = (1.0, *DRAFT_WEIGHTS)
        total = torch.stack([w * x for w, x in zip(weights, found, strict=False)]).sum()
        torch.autograd.backward(total)
        now = time.monotonic()
        self.seconds += parallel.average_gradients(self.model, now - self.clock)
        self.clock = now
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for part in self.optimizers:
            part.step()
            part.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.ids.numel() * self.args.workers
        return [float(x.detach()) for x in found]

    def save(self, path: Path) -> None:
        """Write everything needed to go on."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.step, self.tokens, self.seconds),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a file of :meth:`save`."""
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        for part, saved in zip(self.optimizers, state["optimizers"], strict=True):
            part.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["counters"]


def export(model: reference.Qwen35Mtp, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    generation = {"do_sample": True, "temperature": 0.7, "eos_token_id": 2, "pad_token_id": 0}
    for name, content in (("config", HF_CONFIG), ("generation_config", generation)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    reference.save(model, folder)


def run(args: argparse.Namespace) -> None:
    """Train for the time given, writing the curve and the checkpoint as it goes."""
    torch.manual_seed(args.seed)
    words = sources.split(sources.load(args.sources), held=False)
    tokenizer = Tokenizer.from_file(str(args.output / "tokenizer.json"))
    model = reference.Qwen35Mtp(ModelConfig.from_hf(HF_CONFIG))
    initialize(model)
    state = Run(model, args)
    if args.resume:
        state.restore(args.state)
    for phase in PHASES:
        seed = args.seed + state.step + 10**9 * parallel.rank()
        per_worker = args.batch_tokens // args.workers
        train_phase(state, phase, batches(tokenizer, words, phase.shares, seed, per_worker))
    if parallel.rank() == 0:
        state.save(args.state)
        export(model, args.output)


def train_phase(state: Run, phase: Phase, stream: Iterator[Batch]) -> None:
    """Train until the phase's share of the time is over."""
    budget = state.args.minutes * 60
    sums: list[list[float]] = [[], [], [], []]
    saved = state.seconds
    while state.seconds < phase.until * budget and state.seconds < budget:
        found = state.train_on(next(stream), phase, rate(state.seconds / budget, state.step))
        for column, value in zip(sums, found, strict=False):
            column.append(value)
        if parallel.rank():
            continue
        if state.step % LOG_EVERY == 0:
            log(state, sums)
            sums = [[], [], [], []]
        if state.seconds - saved > SAVE_SECONDS:
            state.save(state.args.state)
            saved = state.seconds


def log(state: Run, sums: list[list[float]]) -> None:
    """Add a line to the curve: minutes, steps, tokens, mean losses of trunk and draft steps."""
    path = state.args.output / "train" / "curve.csv"
    new = not path.exists()
    means = [f"{sum(c) / len(c):.4f}" if c else "" for c in sums]
    with path.open("a", encoding="utf-8") as file:
        curve = csv.writer(file)
        if new:
            curve.writerow(["minute", "step", "tokens", "loss", "draft1", "draft2", "draft3"])
        curve.writerow([f"{state.seconds / 60:.2f}", state.step, state.tokens, *means])
    print(f"{state.seconds:.0f}s", state.step, state.tokens, *means, flush=True)


def main() -> None:
    """Read the command line and train."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=here.parent)
    parser.add_argument("--sources", type=Path, default=here / "packages")
    parser.add_argument("--state", type=Path, default=here / "state.pt")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    args = parser.parse_args()
    (args.output / "train").mkdir(parents=True, exist_ok=True)
    if not (args.output / "tokenizer.json").exists():
        words = sources.split(sources.load(args.sources), held=False)
        tokenization.write(tokenization.train(words, args.seed), args.output)
    parallel.launch(run, args, args.workers)


if __name__ == "__main__":
    main()
