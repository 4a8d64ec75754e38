"""What a folder is found to be, and where one is found by its id."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CliResult
from tests.programs import TIMEOUT_S
from tests.real_checkpoints import NAMES, write_real
from tests.tiny_model import (
    change_config,
    make_checkpoint,
    put_scales,
    random_tensors,
    rename_tensor,
    text_config_of,
    write_json,
    write_weights,
)
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.hub import resolve_checkpoint

Cli = Callable[..., CliResult]


def test_sizes_of_a_checkpoint(checkpoint: Path) -> None:
    """Layers by kind, vocabulary, context and bytes are those that were written."""
    found = read_checkpoint(checkpoint)
    assert found.family == "qwen3.5"
    assert found.num_layers == {"linear_attention": 3, "full_attention": 1}
    assert (found.vocab_size, found.context_length) == (320, 512)
    assert found.bytes_by_dtype == {"F32": 4 * found.num_parameters}
    assert found.quantization is None
    assert (found.mtp.num_layers, found.mtp.missing, found.mtp.unexpected) == (1, (), ())
    assert len(found.mtp.tensors) == 15


def test_released_naming_and_shards_change_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """A multimodal, sharded bfloat16 checkpoint has the same text model in half the bytes."""
    plain = read_checkpoint(checkpoint)
    other = read_checkpoint(
        make_checkpoint(tmp_path / "vl", multimodal=True, num_shards=3, dtype="bfloat16")
    )
    vision = sum(i.num_bytes for name, i in other.tensors.items() if ".visual." in name)
    assert other.prefix == "model.language_model."
    assert other.num_layers == plain.num_layers
    assert 2 * (other.num_bytes - vision) == plain.num_bytes
    assert other.mtp.missing == ()


def test_hidden_files_are_no_weights(tmp_path: Path) -> None:
    """What macOS leaves beside a file that it copies is passed over, with an index or without."""
    folder = make_checkpoint(tmp_path / "c", num_shards=1)
    expected = read_checkpoint(folder).tensors.keys()
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert read_checkpoint(folder).tensors.keys() == expected
    split = make_checkpoint(tmp_path / "split")
    (split / "._mtp.safetensors").write_bytes(b"\0\5\x16\7")
    assert read_checkpoint(split).tensors.keys() == expected


def test_layer_kinds_follow_from_the_interval(tmp_path: Path) -> None:
    """Without layer_types in config.json, every full_attention_interval-th layer is attention."""
    folder = make_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("layer_types")
    write_json(folder / "config.json", config)
    assert list(read_checkpoint(folder).layer_types) == stated


@pytest.mark.parametrize("name", NAMES)
def test_released_models(tmp_path: Path, name: str) -> None:
    """Each released model is recognised, with a whole MTP head and its published size."""
    found = read_checkpoint(write_real(name, tmp_path))
    family, billions = {
        "qwen3-next-80b-a3b": ("qwen3-next", 81),
        "qwen3.5-122b-a10b": ("qwen3.5-moe", 125),
        "qwen3.5-397b-a17b": ("qwen3.5-moe", 403),
        "qwen3.6-35b-a3b": ("qwen3.5-moe", 36),
        "qwen3.8-2.4t-a95b": ("qwen3.5-moe", 2446),
        "qwen3.8-27b": ("qwen3.5", 28),
        "qwen3.8-flash-next": ("qwen3.8-flash-next", None),
    }[name]
    assert found.family == family
    assert found.mtp.missing == ()
    if billions is not None:
        assert round(found.num_parameters / 1e9) == billions


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_quantised_checkpoints_have_the_same_parameters(tmp_path: Path, precision: str) -> None:
    """Scales are no parameters, packed weights count singly, and the MTP head stays whole."""
    plain = read_checkpoint(write_real("qwen3.8-27b", tmp_path / "bf16"))
    found = read_checkpoint(write_real("qwen3.8-27b", tmp_path / precision, precision))
    assert found.quantization is not None
    assert found.quantization.method == precision
    assert found.num_parameters == plain.num_parameters
    assert found.num_bytes < plain.num_bytes
    assert (found.mtp.missing, found.mtp.unexpected) == ((), ())


def test_modelopts_own_file_counts(tmp_path: Path) -> None:
    """hf_quant_config.json states the quantisation, with its KV cache and what it leaves out."""
    folder = make_checkpoint(tmp_path / "c")
    put_scales(folder)
    stated = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["mtp*"]}
    write_json(folder / "hf_quant_config.json", {"quantization": stated})
    quantization = read_checkpoint(folder).quantization
    assert quantization is not None
    assert (quantization.method, quantization.kv_cache_dtype) == ("nvfp4", "fp8")
    assert quantization.excluded == ("mtp*",)


def test_terabytes_are_inspected_from_headers(tmp_path: Path) -> None:
    """A checkpoint of 2.4 TB in 400 shards takes less than 300 MB of memory and no tensor data."""
    folder = write_real("qwen3.8-2.4t-a95b", tmp_path, "fp8", num_shards=400)
    script = (
        "import re, sys\nfrom pathlib import Path\n"
        "from trt_mtp.build.checkpoint import read_checkpoint\n"
        "found = read_checkpoint(Path(sys.argv[1]))\n"
        "assert found.num_bytes > 2.4e12\n"
        # not ru_maxrss, which starts with what the parent had
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert int(run.stdout) < 300


def test_missing_and_unexpected_mtp_tensors_are_named(tmp_path: Path) -> None:
    """A head that is there in part is described, not refused."""
    folder = make_checkpoint(tmp_path / "c", num_shards=2)
    rename_tensor(folder, b"mtp.norm.weight", b"mtp.nrom.weight")
    head = read_checkpoint(folder).mtp
    assert (head.missing, head.unexpected) == (("mtp.norm",), ("mtp.nrom",))


def test_inspect_json_has_the_whole_head(cli: Cli, checkpoint: Path) -> None:
    """The JSON lists every MTP tensor with type and shape."""
    result = cli("inspect", checkpoint, "--json")
    described = json.loads(result.out)
    assert (result.code, described["schema_version"]) == (0, 1)
    assert described["mtp"]["tensors"]["mtp.fc.weight"] == {"dtype": "F32", "shape": [64, 128]}
    assert described["num_layers"] == {"linear_attention": 3, "full_attention": 1}


def test_inspect_text_names_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    """People see the family, the sizes and what the head lacks."""
    folder = make_checkpoint(tmp_path / "c", num_shards=2)
    rename_tensor(folder, b"mtp.norm.weight", b"mtp.nrom.weight")
    out = cli("inspect", folder).out
    assert "3 linear attention, 1 full attention" in out
    assert "missing: mtp.norm" in out
    assert "unexpected: mtp.nrom" in out


def test_an_id_is_found_in_the_cache(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ORG/NAME is the snapshot that refs/main points to; @REVISION is a branch or a commit."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    repository = tmp_path / "hub" / "models--Qwen--Qwen3.5-0.8B"
    snapshot = repository / "snapshots" / "4d7a1c"
    shutil.copytree(checkpoint, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("4d7a1c")
    assert resolve_checkpoint("Qwen/Qwen3.5-0.8B") == snapshot
    assert resolve_checkpoint("Qwen/Qwen3.5-0.8B@4d7a1c") == snapshot


def test_a_user_that_does_not_exist(cli: Cli) -> None:
    """A path into the home of nobody is not a folder, in one sentence."""
    result = cli("inspect", "~no-such-user/model")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "~no-such-user/model" in result.err


def test_an_id_that_is_not_in_the_cache(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown id ends in the command that downloads it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    result = cli("inspect", "Qwen/Qwen3.5-0.8B")
    assert result.code == 2
    assert "run `hf download Qwen/Qwen3.5-0.8B`" in result.err
    assert str(tmp_path) in result.err


def test_layers_left_out_in_the_middle_are_named(cli: Cli, tmp_path: Path) -> None:
    """As an exporter leaves them that skips shards and writes an index of the others."""
    folder = make_checkpoint(tmp_path / "c", num_hidden_layers=8, multimodal=True)
    tensors = json.loads(cli("inspect", folder, "--json").out)["num_tensors"]
    rename_tensor(folder, b"language_model.layers.3.", b"language_module.layer_3.")
    result = cli("build", folder, "--gpu", "h100-80gb", "--dry-run")
    assert tensors > 100
    assert (result.code, result.out) == (2, "")
    assert "lacks model.language_model.layers.3.input_layernorm and 10 more" in result.err


def test_a_layer_that_was_left_as_it_was_lacks_nothing(tmp_path: Path) -> None:
    """It has no scales, and its weights have another name than those that were quantised."""
    folder = make_checkpoint(tmp_path / "c", num_hidden_layers=8)
    tensors = random_tensors(
        text_config_of("float32", num_hidden_layers=8), np.random.default_rng()
    )
    quantised = [
        name for name in tensors if "layers.5" not in name and name.endswith("up_proj.weight")
    ]
    for name in quantised:
        packed = name.removesuffix("weight")
        tensors[f"{packed}qweight"] = tensors.pop(name)
        tensors[f"{packed}scales"] = np.ones(4, np.float32)
    write_weights(folder, tensors, "float32", num_shards=1)
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert read_checkpoint(folder).mtp.missing == ()
