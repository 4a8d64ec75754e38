"""`trt-mtp verify` on the embedded engine, and on a double of TensorRT-LLM."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.build.variant import list_variants, read_variant
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.verify_cli import verify

DOUBLES = Path(__file__).parents[1] / "doubles"


def trtllm_engines(checkpoint: Path, folder: Path, *lengths: int, max_seq_len: int = 512) -> Path:
    """Variants for TensorRT-LLM 1.3.0rc27."""
    found = read_checkpoint(checkpoint)
    version = supported_version("1.3.0rc27")
    options = options_for(found, version, None, max_batch_size=2, max_seq_len=max_seq_len)
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
    """Late drift of greedy answers and other samples of the same distribution pass, and are told.

    The double drifts between 150 and 400 tokens, as real kernels do, and its random numbers depend
    on the draft length.
    """
    monkeypatch.syspath_prepend(DOUBLES)
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 0, result.output
    assert "k0  same answers as without speculation" in result.stdout
    assert "k3  same first 50 tokens as without speculation, later drift" in result.stdout
    found = read_variant(engines / "k3").record.verification
    assert (found["num_prompts"], found["num_early"], found["is_passed"]) == (8, 0, True)
    assert found["acceptance_length"] > 2
    positions = sorted(d["position"] for d in found["divergences"])
    assert len(positions) > 1
    assert 150 <= positions[0] <= positions[-1] < 512
    told = ", ".join(map(str, positions))
    assert f"{len(positions)} of 8 greedy answers leave, at token {told}" in result.stdout
    assert "same distribution of 512 sampled answers at temperature 0.8" in result.stdout
    assert found["sampled"]["p_value"] >= found["sampled"]["level"] == 0.001


def test_short_variants(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variant has no room for drift, its answers are equal as far as they go."""
    monkeypatch.syspath_prepend(DOUBLES)
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3, max_seq_len=128)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 0, result.output
    assert "k3  same answers as without speculation" in result.stdout


def test_early_divergence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers that differ early end with 1; both continuations are told and recorded."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_DRIFTS_AT", "49")
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 1
    assert "k3  OTHER answers" in result.stdout
    assert "prompt 0 at temperature 0.0 leaves at token 49: expected [" in result.stdout
    found = read_variant(engines / "k3").record.verification
    assert found["is_passed"] is False
    assert found["num_early"] == 8
    assert {d["position"] for d in found["divergences"]} == {49}
    assert all(d["expected"] != d["got"] for d in found["divergences"])
    assert read_variant(engines / "k0").record.verification["is_identical"]


def test_late_enough(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 50 tokens must be the same, and not one more."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_DRIFTS_AT", "50")
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    assert CliRunner().invoke(verify, [str(engines)]).exit_code == 0


def test_other_distribution(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that are kept half the time without being drawn change the distribution."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_KEEPS_DRAFTS", "0.5")
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert result.exit_code == 1
    assert "OTHER distribution of 512 sampled answers" in result.stdout
    found = read_variant(engines / "k3").record.verification
    assert found["num_early"] == 0
    assert found["sampled"]["p_value"] < 0.001


def test_a_record_that_can_not_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only volume that is said before anything is probed."""
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 0, 3)
    monkeypatch.setattr("trt_mtp.serve.verify_cli.require_engine", lambda engine: None)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    result = CliRunner().invoke(verify, [str(engines)])
    assert isinstance(result.exception, TrtMtpError)
    assert str(result.exception).startswith(f"can't write to {engines / 'k0'}, whose variant.json")
    assert "running" not in result.output


def test_needs_no_speculation(checkpoint: Path, tmp_path: Path) -> None:
    """Without draft length 0 there is nothing to compare with."""
    engines = trtllm_engines(checkpoint, tmp_path / "engines", 1, 3)
    result = CliRunner().invoke(verify, [str(engines)])
    assert isinstance(result.exception, InputError)
    assert "build draft length 0 too" in str(result.exception)
