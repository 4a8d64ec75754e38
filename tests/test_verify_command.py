"""`trt-mtp verify` on the embedded engine, and on a double of TensorRT-LLM."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.build.variant import list_variants, read_variant
from trt_mtp.errors import InputError
from trt_mtp.serve.verify_cli import verify

DOUBLES = Path(__file__).with_name("doubles")


def trtllm_engines(checkpoint: Path, folder: Path, *lengths: int) -> Path:
    """Variants for TensorRT-LLM 1.3.0rc27."""
    found = read_checkpoint(checkpoint)
    version = supported_version("1.3.0rc27")
    options = options_for(found, version, None, max_batch_size=2, max_seq_len=512)
    write_variants(plan_variants(found, options, lengths, folder), found, options, folder)
    return folder


def test_embedded_engine(checkpoint: Path, tmp_path: Path) -> None:
    """Every draft length answers as none does, and what it costs is in its record."""
    build_cpu(
        read_checkpoint(checkpoint),
        (0, 2),
        tmp_path,
        max_batch_size=2,
        max_seq_len=None,
        progress=lambda what, done, total: None,
    )
    result = CliRunner().invoke(verify, [str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [entry["name"] for entry in report["variants"]] == ["k0", "k2"]
    for entry, variant in zip(report["variants"], list_variants(tmp_path), strict=True):
        assert entry["is_identical"]
        assert entry["num_prompts"] == 16
        assert [step["batch_size"] for step in entry["measured"]["steps"]] == [1, 2]
        assert entry["measured"]["load_s"] > 0
        assert entry["measured"]["host_bytes"] > 10**6
        assert variant.record.verification["is_identical"]
        assert variant.record.verification["measured"] == entry["measured"]


def test_tensorrt_llm(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code runs TensorRT-LLM variants, greedy requests only."""
    monkeypatch.syspath_prepend(DOUBLES)
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 0, result.output
    assert "k3  same answers as without speculation (384 tokens)" in result.stdout
    record = read_variant(engines / "k3").record
    assert record.verification["num_prompts"] == 8
    assert record.verification["acceptance_length"] > 2


def test_divergence(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that differs ends with 1, and both continuations are told and recorded."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_DIVERGES", "1")
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 1
    assert "k3  OTHER answers" in result.stdout
    assert "prompt 0 at temperature 0.0 leaves at token 10: expected [" in result.stdout
    divergences = read_variant(engines / "k3").record.verification["divergences"]
    assert {d["position"] for d in divergences} == {10}
    assert all(d["expected"] != d["got"] for d in divergences)
    assert read_variant(engines / "k0").record.verification["is_identical"]


def test_needs_no_speculation(checkpoint: Path, tmp_path: Path) -> None:
    """Without draft length 0 there is nothing to compare with."""
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 1, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert isinstance(result.exception, InputError)
    assert "build draft length 0 too" in str(result.exception)
