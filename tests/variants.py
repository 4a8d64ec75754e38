"""Variants to serve: real ones that answer, and records without an engine behind them."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.engine_fixtures import make_drafting_checkpoint
from trt_mtp import __version__
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.build.variant import EngineVariant, VariantRecord, variant_name, write_variant


def make_variant(engines: Path, draft_length: int, *, fingerprint: str = "f0") -> EngineVariant:
    """A variant in `engines` that can be rendered, but not opened."""
    name = variant_name(draft_length)
    (engines / name).mkdir(parents=True)
    record = VariantRecord(
        schema_version=1,
        name=name,
        engine="cpu",
        draft_length=draft_length,
        checkpoint={},
        versions={"trt_mtp": __version__},
        device={},
        max_batch_size=8,
        max_seq_len=512,
        shared="../.shared/none",
        created="2026-01-01T00:00:00+00:00",
        fingerprint=fingerprint,
    )
    return write_variant(engines / name, record)


def build_engines(folder: Path, draft_lengths: Sequence[int], *, max_batch_size: int = 2) -> Path:
    """Variants whose drafts are right about half of the time.

    No token ends their answers, so that max_tokens does.
    """
    checkpoint = make_drafting_checkpoint(folder / "checkpoint", max_position_embeddings=4096)
    build_cpu(
        read_checkpoint(checkpoint),
        draft_lengths,
        folder / "engines",
        max_batch_size=max_batch_size,
        max_seq_len=4096,
        progress=lambda *_: None,
    )
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        for file in (folder / "engines").glob(f".shared/*/{name}"):
            forget_end(file)
    return folder / "engines"


def forget_end(file: Path) -> None:
    """Take the end tokens out of a file that an engine reads; no build would leave them out."""
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps({key: value for key, value in config.items() if not key.startswith("eos_")})
    )
