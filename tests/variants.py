"""Variant records without an engine behind them."""

from pathlib import Path

from trt_mtp import __version__
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
