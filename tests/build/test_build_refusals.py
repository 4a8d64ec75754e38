"""`trt-mtp build` for the CPU engine: each input that it refuses has its sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.tiny_model import change_config, make_checkpoint, put_scales

Cli = Callable[..., CliResult]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of one test's own."""
    return make_checkpoint(tmp_path / "checkpoint")


BAD_LENGTHS = {
    "0,-1": "-1 is negative",
    "1,3,1": "1 is there twice",
    "1,x": "'x' is not an integer",
    "1.5": "'1.5' is not an integer",
    "": "'' is not an integer",
    "1,,2": "'' is not an integer",
    "16": "16 is more than 15",
}


@pytest.mark.parametrize("lengths", BAD_LENGTHS)
def test_each_bad_draft_length_has_its_sentence(
    cli: Cli, checkpoint: Path, tmp_path: Path, lengths: str
) -> None:
    """A wrong list is refused before anything is written, with the wrong entry named."""
    engines = tmp_path / "engines"
    result = cli("build", checkpoint, "--engine", "cpu", "-o", engines, "--draft-lengths", lengths)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert BAD_LENGTHS[lengths] in result.err
    assert not engines.exists()


def refuse_moe(folder: Path) -> None:
    sizes = dict.fromkeys(("num_experts", "num_experts_per_tok", "moe_intermediate_size"), 4)
    change_config(folder, model_type="qwen3_5_moe_text", **sizes)


def refuse_fp8(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    put_scales(folder)


def refuse_bias(folder: Path) -> None:
    change_config(folder, attention_bias=True)


def refuse_two_mtp_layers(folder: Path) -> None:
    make_checkpoint(folder, mtp_num_hidden_layers=2)


def refuse_wrong_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=128)


def refuse_no_size(folder: Path) -> None:
    change_config(folder, linear_num_key_heads=None)


def refuse_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def refuse_missing_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"layers.2.mlp.up_proj", b"layers.2.mlp.up_porj"))


def refuse_half_a_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"mtp.norm.weight", b"mtp.nrom.weight"))


def refuse_no_context(folder: Path) -> None:
    change_config(folder, max_position_embeddings=8)


REFUSED: dict[Callable[[Path], None], str] = {
    refuse_moe: "use --engine tensorrt-llm",
    refuse_fp8: "is quantised (fp8)",
    refuse_bias: "attention_bias is True; the cpu engine needs False",
    refuse_two_mtp_layers: "mtp_num_hidden_layers is 2; the cpu engine needs 1",
    refuse_wrong_shape: "but config.json makes it [128, 64]",
    refuse_no_size: "linear_num_key_heads is None, expected a positive integer",
    refuse_no_context: "max_position_embeddings is 8; the cpu engine needs 16",
    refuse_no_tokenizer: "has no tokenizer.json",
    refuse_missing_tensor: "lacks model.layers.2.mlp.up_proj, as when an exporter",
    refuse_half_a_head: "lacks 1 tensors of its MTP head, the first is mtp.norm",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_the_cpu_engine_cannot_run_is_refused(
    cli: Cli, source: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Each checkpoint that the CPU engine can't run has its sentence, and leaves no variant."""
    change(source)
    result = cli("build", source, "--engine", "cpu", "-o", tmp_path / "engines", "--no-verify")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert REFUSED[change] in result.err
    assert not list((tmp_path / "engines").glob("*/variant.json"))


def test_a_context_that_is_too_long_is_refused(cli: Cli, source: Path, tmp_path: Path) -> None:
    """--max-seq-len can't be more than the checkpoint was made for."""
    where = ["-o", tmp_path / "engines"]
    result = cli("build", source, "--engine", "cpu", *where, "--max-seq-len", "513")
    assert (result.code, "made for 512 tokens" in result.err) == (2, True)
