"""A quantised checkpoint is judged by what loads it: the CPU engine or TensorRT-LLM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CliResult
from tests.tiny_model import make_checkpoint, put_scales, write_json

Cli = Callable[..., CliResult]


def groups(bits: int, kind: str) -> dict[str, Any]:
    """compressed-tensors with one group of modules."""
    weights = {"num_bits": bits, "type": kind, "strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }


REFUSED: dict[str, dict[str, Any]] = {
    "quant_method gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "quant_method awq": {"quant_method": "awq", "bits": 4},
    "quant_method auto-round": {"quant_method": "auto-round", "bits": 4},
    "quant_method bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed-tensors of 4 bits of type 'int'": groups(4, "int"),
    "compressed-tensors of 8 bits of type 'int'": groups(8, "int"),
    "compressed-tensors without config_groups": {"quant_method": "compressed-tensors"},
    "quant_method fp8 without weight_block_size": {"quant_method": "fp8"},
    "weight_block_size [64, 64]": {"quant_method": "fp8", "weight_block_size": [64, 64]},
    "quant_method unknown": {"bits": 3},
}
LOADED: list[dict[str, Any]] = [
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "fp8", "activation_scheme": "static"},
    groups(8, "float"),
    groups(4, "float"),
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
]


def quantized(folder: Path, stated: dict[str, Any], *, nested: bool = False) -> Path:
    """A checkpoint that says it is quantised."""
    make_checkpoint(folder, multimodal=nested)
    put_scales(folder)
    config = json.loads((folder / "config.json").read_text())
    part = config["text_config"] if nested else config
    part["quantization_config"] = stated
    write_json(folder / "config.json", config)
    return folder


def dry_run(cli: Cli, folder: Path) -> dict[str, str]:
    """The errors of a dry run for 1.3.0rc27, by id."""
    options = ["--trtllm-version", "1.3.0rc27", "--dry-run", "--json"]
    result = cli("build", folder, "--engine", "tensorrt-llm", *options)
    return {
        finding["id"]: finding["message"]
        for variant in json.loads(result.out)["variants"]
        for finding in variant["findings"]
        if finding["severity"] == "error"
    }


@pytest.mark.parametrize("nested", [False, True], ids=["outside", "in text_config"])
@pytest.mark.parametrize("reason", REFUSED)
def test_what_tensorrt_llm_does_not_load_is_said(
    cli: Cli, tmp_path: Path, reason: str, nested: bool
) -> None:
    """The dry run names the format, and the CPU engine's error doesn't point to TensorRT-LLM."""
    folder = quantized(tmp_path / "c", REFUSED[reason], nested=nested)
    assert f"TensorRT-LLM doesn't load {reason} " in dry_run(cli, folder)["quantization-unknown"]
    result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / "engines")
    assert result.code == 2
    assert "use the unquantised checkpoint, which TensorRT-LLM needs as well" in result.err


@pytest.mark.parametrize("stated", LOADED)
def test_what_tensorrt_llm_loads_is_not_refused(
    cli: Cli, tmp_path: Path, stated: dict[str, Any]
) -> None:
    """FP8 in blocks or static, compressed-tensors of floats and ModelOpt's formats pass."""
    folder = quantized(tmp_path / "c", stated)
    assert "quantization-unknown" not in dry_run(cli, folder)
    result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / "engines")
    assert "use the unquantised checkpoint or --engine tensorrt-llm" in result.err
